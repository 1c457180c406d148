"""Kill training repeatedly, resume it, and compare it with an uninterrupted run, bit by bit.

python tests/kill_training.py --data_dir DATA --work_dir FOLDER [--kills 20] [-- FLAGS OF train.py]

One run is not interrupted. Another is killed (SIGKILL to all of its processes) at random moments:
while the cache is built, in an epoch, while a checkpoint is written, while the model folder is
made. After each kill the same command is given again. In the end its weights and config.json must
equal those of the first run, and so must the whole state in the last checkpoint of each phase (see
same_bits.py): the best checkpoint, from which the model folder is made, may be older than the
kills. A run that completes before all kills are used is compared, and another one is started.
Each run has its own, empty cache. The processes are forked from one that has all imports; see
forks.py.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from forks import start_fork

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("model.safetensors", "config.json", "preprocessor_config.json")
# A small network, with all options that keep a state between steps. The AUROC of drawn images is 1
# after the first epoch; by the Brier score the best checkpoint is a later one. Each step is logged,
# so that the step before a kill is known.
FLAGS = (
    "--backbone xray-cnn --image_size 64 --precision fp32 --channels_last false --cpu_threads 1 "
    "--phases head:1:1e-2 all:6:3e-3 --ema_decay 0.9 --mixup 0.2 --cutmix 1 --imbalance sampler "
    "--per_device_train_batch_size 8 --logging_steps 1 --early_stopping_patience 0 "
    "--metric_for_best_model brier --report_to none --disable_tqdm true "
    "--bootstrap_resamples 20 --threshold_resamples 50 --attribution_images 1"
).split()
POLL = 0.002  # seconds
PATIENCE = 600.0  # seconds that a process may take to reach a moment
# Range of the share of the remaining steps after which a kill in training comes.
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
    generator = random.Random(options.seed)

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
            runs[-1].finish()  # it was killed, and must be compared
            runs.append(Run(options, f"killed-{len(runs) + 1}", phases))
        left = kill_at(runs[-1], name, generator, seconds)
        if left is None:  # the run has completed
            runs.append(Run(options, f"killed-{len(runs) + 1}", phases))
            continue
        reached.append(runs[-1].count_steps())
        where = f"{runs[-1].folder.name}, {name}: step {reached[-1]} of {total}"
        print(f"kill {len(reached)}, {where}; {left}", flush=True)
    if not runs[-1].is_complete():
        runs[-1].finish()
    different = []
    for run in runs:
        print(f"{run.folder.name}: {run.describe()}")
        if run.hash_files() != wanted:
            different.append(f"{run.folder.name}: the model folder")
        different += compare_checkpoints(reference, run)
    mattered = sum(0 < step < total for step in reached)
    print(f"{mattered} of {len(reached)} kills mattered: in training, before the last step.")
    if different:
        print("DIFFERENT from the uninterrupted run:", *different, sep="\n")
        return 1
    print(f"{len(reached)} kills in {len(runs)} runs: all bit-equal to the uninterrupted run.")
    return 0


def compare_checkpoints(reference: "Run", run: "Run") -> list[str]:
    """Return the differences between the last checkpoints of two runs, for each phase."""
    sys.path.insert(0, str(ROOT))  # pneumonia_hf need not be installed
    from same_bits import assert_same_last_checkpoint

    different = []
    for phase in range(1, len(run.phases) + 1):
        try:
            assert_same_last_checkpoint(reference.output, run.output, after=0, phase=phase)
        except AssertionError as error:
            different.append(f"{run.folder.name}: {error}")
    return different


class Run:
    """A run in its own folder: its output, cache and log."""

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
        self.flags = ["--data_dir", str(options.data_dir), "--output_dir", str(self.output)]
        self.flags += [*options.flags, "--resume"]

    def start(self) -> BaseProcess:
        """Start or resume the run, by the same command."""
        log = self.folder / "log"
        log.touch()
        self.log_before = log.stat().st_size
        script, cache = ROOT / "train_scripts" / "train.py", {"PNEUMONIA_HF_CACHE": str(self.cache)}
        return start_fork(script, *self.flags, log=log, **cache)

    def finish(self) -> None:
        """Complete the run."""
        process = self.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit((self.folder / "log").read_text()[-2000:])

    def is_complete(self) -> bool:
        return (self.output / "config.json").exists()

    def hash_files(self) -> list[str]:
        return [hashlib.sha256((self.output / name).read_bytes()).hexdigest() for name in COMPARED]

    def describe(self) -> str:
        """Return the weights of a complete run, and its best checkpoint."""
        best = json.loads((self.output / "run.json").read_text())["training"]["best_checkpoint"]
        return f"weights {self.hash_files()[0][:16]}, the best checkpoint is {best}"

    def list_phases(self) -> list[tuple[int, float]]:
        """Return the steps and epochs of each phase of a complete run."""
        paths = sorted(self.output.glob("checkpoints/phase-*/outcome.json"))
        outcomes = [json.loads(path.read_text()) for path in paths]
        return [(one["steps"], one["epochs"]) for one in outcomes]

    def count_steps(self) -> int:
        """Return the last step, over all phases, in the log or in a checkpoint."""
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
        """Return the number of steps before this phase."""
        return sum(steps for steps, _ in self.phases[: phase - 1])

    def torn_checkpoint(self) -> Path | None:
        """Return the checkpoint that is being written."""
        written = self.output.glob("checkpoints/phase-*/.unfinished/checkpoint-*")
        return next(written, None)


def is_building_cache(run: Run, step: int) -> bool:
    """Return whether the cache is being written, and training has not begun."""
    return any(run.cache.glob("*/*")) and not (run.output / "checkpoints/recipe.json").exists()


def is_training(run: Run, step: int) -> bool:
    """Return whether this process has reached a step."""
    return run.count_steps() >= step


def is_writing_checkpoint(run: Run, step: int) -> bool:
    """Return whether a checkpoint after a step is being written, not left by an earlier kill."""
    return run.torn_checkpoint() not in (None, run.torn_before) and is_training(run, step)


def is_making_folder(run: Run, step: int) -> bool:
    """Return whether the model folder is being assembled."""
    return (run.output / ".unfinished").exists()


# What to wait for, and the longest time to wait after it, as a share of a whole run.
MOMENTS = {
    "while the cache is built": (is_building_cache, 0.02),
    "in an epoch": (is_training, 0.01),
    "while a checkpoint is written": (is_writing_checkpoint, 0.001),
    "in an epoch, again": (is_training, 0.01),
    "while another checkpoint is written": (is_writing_checkpoint, 0.001),
    "while the folder is made": (is_making_folder, 0.05),
}


def kill_at(run: Run, name: str, generator: random.Random, seconds: float) -> str | None:
    """Start a run and kill it; return what is on disk, or None if it completed before."""
    has_come, share = MOMENTS[name]
    run.torn_before = run.torn_checkpoint()
    process = run.start()
    done, total = run.count_steps(), run.count_before(len(run.phases) + 1)
    step = done + max(1, round(generator.uniform(*SHARES) * (total - done)))
    started = time.monotonic()
    while not has_come(run, step):
        if process.exitcode is not None:
            if process.exitcode != 0:
                raise SystemExit((run.folder / "log").read_text()[-3000:])
            return None
        if time.monotonic() - started > PATIENCE:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"{name}: not reached within {PATIENCE:.0f} s")
        time.sleep(POLL)
    time.sleep(generator.uniform(0, share * seconds))
    if process.exitcode is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return describe(run)


def describe(run: Run) -> str:
    """Return what a kill has left on disk."""
    complete = sorted(
        str(path.parent.relative_to(run.output / "checkpoints"))
        for path in run.output.glob("checkpoints/phase-*/checkpoint-*/trainer_state.json")
    )
    left = [f"complete: {', '.join(complete) or 'none'}"]
    torn = run.torn_checkpoint()
    if torn:
        left.append(f"torn: {torn.name} with {len(list(torn.iterdir()))} files")
    if is_making_folder(run, 0):
        files = len(list((run.output / ".unfinished").iterdir()))
        left.append(f"unfinished folder with {files} files")
    if not (run.output / "checkpoints/recipe.json").exists():
        size = sum(path.stat().st_size for path in run.cache.rglob("*") if path.is_file())
        left.append(f"cache of {size} bytes")
    return "; ".join(left)


if __name__ == "__main__":
    raise SystemExit(main())
