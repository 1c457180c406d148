"""Kill training again and again, resume it, and compare what comes out, bit for bit.

python tests/kill_training.py --data_dir DATA --work_dir FOLDER [--kills 20] [-- FLAGS OF train.py]

A run is made without interruption, with a cache of its own. Another is killed (SIGKILL, to all of
its processes) at moments drawn by lot: while the cache is built, in an epoch, while a checkpoint
is written, while the finished folder is made. Each time the same command is given again. In the
end its weights and its config.json must be those of the first, and so must all that the last
checkpoint of each phase keeps (see same_bits.py): the best checkpoint, from which the folder is
made, may be older than the kills. A run that comes to its end before the kills are used up is
compared, and the next one begun, again with an empty cache.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("model.safetensors", "config.json", "preprocessor_config.json")
# A small network, with all that keeps a state between steps. The AUROC of drawn images is 1 after
# the first epoch; by the Brier score the best checkpoint is a later one. Each step is logged, so
# that it is known which one a kill came after.
FLAGS = (
    "--backbone xray-cnn --image_size 64 --precision fp32 --channels_last false --cpu_threads 1 "
    "--phases head:1:1e-2 all:6:3e-3 --ema_decay 0.9 --mixup 0.2 --cutmix 1 --imbalance sampler "
    "--per_device_train_batch_size 8 --logging_steps 1 --early_stopping_patience 0 "
    "--metric_for_best_model brier --report_to none --disable_tqdm true"
).split()
POLL = 0.002  # seconds
PATIENCE = 600.0  # seconds that a process may take to come to a moment
# A kill in training comes after this share of the steps that are left, at the least and at most.
SHARES = (0.05, 0.6)


def main() -> int:
    """Kill, resume, compare; return 0 if all runs ended with the same bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--work_dir", type=Path, required=True, help="New folder for all files.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("flags", nargs="*", default=FLAGS, help="After --: of train.py.")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True)
    lot = random.Random(options.seed)

    reference = Run(options, "uninterrupted")
    started = time.monotonic()
    reference.finish()
    seconds = time.monotonic() - started
    phases = reference.list_phases()
    total = sum(steps for steps, _ in phases)
    wanted = reference.hash_files()
    print(f"uninterrupted: {seconds:.0f} s, {total} steps, {reference.describe()}", flush=True)

    reached, runs = [], [Run(options, "killed-1", phases)]
    while len(reached) < options.kills:
        name = list(MOMENTS)[len(reached) % len(MOMENTS)]
        if name == "while the cache is built" and runs[-1].output.exists():
            runs[-1].finish()  # it has been killed, and has to be compared
            runs.append(Run(options, f"killed-{len(runs) + 1}", phases))
        summary = kill_at(runs[-1], name, lot, seconds)
        if summary is None:  # it came to its end
            runs.append(Run(options, f"killed-{len(runs) + 1}", phases))
            continue
        reached.append(runs[-1].count_steps())
        where = f"step {reached[-1]} of {total}"
        print(
            f"kill {len(reached)}, {runs[-1].folder.name}, {name}: {where}; {summary}", flush=True
        )
    if not runs[-1].is_complete():
        runs[-1].finish()
    different = []
    for run in runs:
        print(f"{run.folder.name}: {run.describe()}")
        if run.hash_files() != wanted:
            different.append(f"{run.folder.name}: the finished folder")
        different += compare_checkpoints(reference, run)
    mattered = sum(0 < step < total for step in reached)
    print(f"{mattered} of {len(reached)} kills mattered: in training, before the last step.")
    if different:
        print("DIFFERENT from the uninterrupted run:", *different, sep="\n")
        return 1
    print(f"{len(reached)} kills in {len(runs)} runs: all bit-equal to the uninterrupted run.")
    return 0


def compare_checkpoints(reference: "Run", run: "Run") -> list[str]:
    """Return in what the last checkpoints of a run's phases differ from the reference's."""
    sys.path.insert(0, str(ROOT))  # of pneumonia_hf, which need not be installed
    from same_bits import assert_same_last_checkpoint

    different = []
    for phase in range(1, len(run.phases) + 1):
        try:
            assert_same_last_checkpoint(reference.output, run.output, after=0, phase=phase)
        except AssertionError as error:
            different.append(f"{run.folder.name}: {error}")
    return different


class Run:
    """A run in a folder of its own: the output, the cache, and what was printed."""

    def __init__(
        self, options: argparse.Namespace, name: str, phases: list[tuple[int, float]] | None = None
    ) -> None:
        """Take the options, a name, and how many steps and epochs each phase will have."""
        self.phases = phases or []
        self.folder = options.work_dir / name
        self.output, self.cache = self.folder / "output", self.folder / "cache"
        self.folder.mkdir()
        self.log_before = 0
        self.torn_before: Path | None = None
        self.command = [sys.executable, str(ROOT / "train_scripts" / "train.py")]
        self.command += ["--data_dir", str(options.data_dir), "--output_dir", str(self.output)]
        self.command += [*options.flags, "--resume"]

    def start(self) -> subprocess.Popen:
        """Give the one command, the first time and each time after."""
        with (self.folder / "log").open("ab") as log:
            self.log_before = log.tell()
            return subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                # Unbuffered, so that the log tells of each step at once.
                env=os.environ | {"PNEUMONIA_HF_CACHE": str(self.cache), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def finish(self) -> None:
        """Let the run come to its end."""
        if self.start().wait() != 0:
            raise SystemExit((self.folder / "log").read_text()[-2000:])

    def is_complete(self) -> bool:
        return (self.output / "config.json").exists()

    def hash_files(self) -> list[str]:
        return [hashlib.sha256((self.output / name).read_bytes()).hexdigest() for name in COMPARED]

    def describe(self) -> str:
        """Return which weights a finished run has, and where they come from."""
        best = json.loads((self.output / "run.json").read_text())["training"]["best_checkpoint"]
        return f"weights {self.hash_files()[0][:16]}, the best checkpoint is {best}"

    def list_phases(self) -> list[tuple[int, float]]:
        """Return the steps and epochs of each phase of a finished run."""
        outcomes = sorted(self.output.glob("checkpoints/phase-*/outcome.json"))
        summary = [json.loads(path.read_text()) for path in outcomes]
        return [(one["steps"], one["epochs"]) for one in summary]

    def count_steps(self) -> int:
        """Return the step, over all phases, that was logged last, or that a checkpoint has."""
        with (self.folder / "log").open("rb") as file:
            file.seek(self.log_before)
            *_, number, log = re.split(r"Phase (\d+) of \d+", "Phase 1 of 1" + file.read().decode())
        epochs = re.findall(r"'loss': .*'epoch': '?([\d.]+)", log)
        if epochs:
            steps, of_epochs = self.phases[int(number) - 1]
            return self.count_before(int(number)) + round(float(epochs[-1]) * steps / of_epochs)
        complete = self.output.glob("checkpoints/phase-*/checkpoint-*/trainer_state.json")
        places = [[int(part.split("-")[1]) for part in path.parts[-3:-1]] for path in complete]
        return max((self.count_before(phase) + step for phase, step in places), default=0)

    def count_before(self, phase: int) -> int:
        """Return how many steps the phases before this one have."""
        return sum(steps for steps, _ in self.phases[: phase - 1])

    def torn_checkpoint(self) -> Path | None:
        """Return the checkpoint that is being written."""
        written = self.output.glob("checkpoints/phase-*/.unfinished/checkpoint-*")
        return next(written, None)


def is_building_cache(run: Run, step: int) -> bool:
    """Return whether the store has begun, and training has not."""
    return any(run.cache.glob("*/*")) and not (run.output / "checkpoints/recipe.json").exists()


def is_training(run: Run, step: int) -> bool:
    """Return whether this process has come to a step."""
    return run.count_steps() >= step


def is_writing_checkpoint(run: Run, step: int) -> bool:
    """Return whether a checkpoint after a step has begun, another than the kill before tore."""
    return run.torn_checkpoint() not in (None, run.torn_before) and is_training(run, step)


def is_making_folder(run: Run, step: int) -> bool:
    """Return whether the finished folder is being put together."""
    return (run.output / ".unfinished").exists()


# What to wait for, and the longest time, as a share of a whole run, to wait after it.
MOMENTS = {
    "while the cache is built": (is_building_cache, 0.02),
    "in an epoch": (is_training, 0.01),
    "while a checkpoint is written": (is_writing_checkpoint, 0.001),
    "in an epoch, again": (is_training, 0.01),
    "while another checkpoint is written": (is_writing_checkpoint, 0.001),
    "while the folder is made": (is_making_folder, 0.05),
}


def kill_at(run: Run, name: str, lot: random.Random, seconds: float) -> str | None:
    """Start a run, kill it at a moment, and say what was on disk; None if it ended before."""
    has_come, share = MOMENTS[name]
    run.torn_before = run.torn_checkpoint()
    process = run.start()
    done, total = run.count_steps(), run.count_before(len(run.phases) + 1)
    step = done + max(1, round(lot.uniform(*SHARES) * (total - done)))
    started = time.monotonic()
    while not has_come(run, step):
        if process.poll() is not None:
            if process.returncode != 0:
                raise SystemExit((run.folder / "log").read_text()[-3000:])
            return None
        if time.monotonic() - started > PATIENCE:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"{name} did not come within {PATIENCE:.0f} s")
        time.sleep(POLL)
    time.sleep(lot.uniform(0, share * seconds))
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return describe(run)


def describe(run: Run) -> str:
    """Return what a kill left on disk."""
    complete = sorted(
        str(path.parent.relative_to(run.output / "checkpoints"))
        for path in run.output.glob("checkpoints/phase-*/checkpoint-*/trainer_state.json")
    )
    summary = [f"complete: {', '.join(complete) or 'none'}"]
    torn = run.torn_checkpoint()
    if torn:
        summary.append(f"torn: {torn.name} with {len(list(torn.iterdir()))} files")
    if is_making_folder(run, 0):
        files = len(list((run.output / ".unfinished").iterdir()))
        summary.append(f"unfinished folder with {files} files")
    if not (run.output / "checkpoints/recipe.json").exists():
        size = sum(path.stat().st_size for path in run.cache.rglob("*") if path.is_file())
        summary.append(f"cache of {size} bytes")
    return "; ".join(summary)


if __name__ == "__main__":
    raise SystemExit(main())
