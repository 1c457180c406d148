#!/usr/bin/env bash
# Two machines that are one: two network namespaces, joined by a cable of the kernel's.
#
#   sudo tests/two_machines.sh shared|own FOLDER FLAG...
#
# FLAG... go to train_scripts/train.py. With `shared` both machines see the one disk of this
# computer. With `own` each has a disk of its own for the output and the cache: FOLDER/machine-0
# and FOLDER/machine-1, which each of them sees as FOLDER/disk. The logs are FOLDER/machine-N.log.
# Linux only, and root: it makes namespaces and takes them away again, however it ends. Exit
# status: that of the first machine that failed, or 0.
#
# PYTHON names the interpreter, PROCESSES how many of them run on each machine (1), PORT the port
# of machine 0 (29500; free on any computer, as the namespaces are new), LAUNCHER accelerate or
# torchrun, SCRIPT another script than train.py: predict.py or evaluate_model.py.
set -euo pipefail

usage() { sed -n '3,6p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
[ $# -ge 2 ] || usage
case $1 in shared | own) disks=$1 ;; *) usage ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$2"
folder=$(cd "$2" && pwd)
shift 2
[ "$(id -u)" = 0 ] || { echo "error: namespaces need root; put sudo before it." >&2; exit 2; }
command -v ip >/dev/null || { echo "error: ip is missing; install iproute2." >&2; exit 2; }

python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "$python" || command -v python3)
processes=${PROCESSES:-1}
port=${PORT:-29500}
launcher=${LAUNCHER:-accelerate}
# Names of our own, so that two runs of this script, or others' namespaces, are left alone.
names=("xray-$$-0" "xray-$$-1")
addresses=(10.77.0.1 10.77.0.2)

clean_up() {
    trap '' INT TERM  # a second signal must not cut this short
    for name in "${names[@]}"; do
        ip netns pids "$name" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
        ip netns delete "$name" 2>/dev/null || true  # its end of the cable goes with it
    done
}
trap clean_up EXIT
trap 'exit 130' INT TERM

for name in "${names[@]}"; do ip netns add "$name"; done
ip -n "${names[0]}" link add cable type veth peer name cable netns "${names[1]}"
for rank in 0 1; do
    ip -n "${names[rank]}" address add "${addresses[rank]}/24" dev cable
    ip -n "${names[rank]}" link set lo up
    ip -n "${names[rank]}" link set cable up
done

case $launcher in
accelerate)
    launch=("$python" -m accelerate.commands.launch --quiet
        --config_file "$root/train_scripts/accelerate/several_machines.yaml"
        --num_machines 2 --num_processes $((2 * processes))
        --main_process_ip "${addresses[0]}" --main_process_port "$port" --machine_rank)
    ;;
torchrun)
    launch=("$python" -m torch.distributed.run --nnodes 2 --nproc_per_node "$processes"
        --master_addr "${addresses[0]}" --master_port "$port" --node_rank)
    ;;
*) echo "error: LAUNCHER is accelerate or torchrun." >&2; exit 2 ;;
esac

disk=$folder/disk
script=${SCRIPT:-train.py}
output=(--output_dir "$disk/run")
[ "$script" != predict.py ] || output=(--output "$disk/scores.parquet")
mkdir -p "$disk"
pids=()
for rank in 0 1; do
    prepare=true
    if [ "$disks" = own ]; then
        mkdir -p "$folder/machine-$rank"
        # Seen in this namespace alone: `ip netns exec` gives each command mounts of its own.
        prepare="mount --bind '$folder/machine-$rank' '$disk'"
    fi
    # gloo would ask the resolver for this computer's name, which leads outside the cable.
    ip netns exec "${names[rank]}" env GLOO_SOCKET_IFNAME=cable TP_SOCKET_IFNAME=cable \
        PNEUMONIA_HF_CACHE="$disk/cache" PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" \
        bash -c "$prepare && cd '$root' && exec \"\$@\"" machine \
        "${launch[@]}" "$rank" "$root/train_scripts/$script" "$@" "${output[@]}" \
        >"$folder/machine-$rank.log" 2>&1 &
    pids+=($!)
done

failed=0
for rank in 0 1; do
    status=0
    wait "${pids[rank]}" || status=$?
    echo "machine $rank: exit status $status; its log is $folder/machine-$rank.log"
    # What the script says; the launchers add a page of their own when it fails.
    said='([A-Za-z]*[Ee]rror: |The saved model|The report is|[0-9]+ images?:)'
    grep -aE "(^|\] ?)$said" "$folder/machine-$rank.log" |
        grep -av ChildFailedError | head -n 3 || true
    [ "$failed" != 0 ] || failed=$status
done
exit "$failed"
