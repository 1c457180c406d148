"""Kill training again and again, resume it, and compare what comes out, bit for bit.

python tests/kill_training.py --data_dir DATA --work_dir FOLDER [--kills 20] [-- FLAGS OF train.py]

A run is made without interruption, with a cache of its own. Another is killed (SIGKILL, to all of
its processes) at moments drawn by lot: while the cache is built, in an epoch, while a checkpoint
is written, while the finished folder is made. Each time the same command is given again. In the
end its weights and its config.json must be those of the first. A run that comes to its end
before the kills are used up is compared, and the next one begun, again with an empty cache.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("model.safetensors", "config.json", "preprocessor_config.json")
# A small network, with all that keeps a state between steps.
FLAGS = (
    "--backbone xray-cnn --image_size 64 --precision fp32 --channels_last false --cpu_threads 1 "
    "--stages head:1:1e-2 all:5:3e-3 --ema_decay 0.9 --mixup 0.2 --cutmix 1 --imbalance sampler "
    "--per_device_train_batch_size 8 --logging_steps 5 --early_stopping_patience 0 "
    "--report_to none --disable_tqdm true"
).split()
POLL = 0.0005  # seconds
PATIENCE = 600.0  # seconds that a process may take to come to a moment


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
    if reference.start().wait() != 0:
        print((reference.folder / "log").read_text()[-2000:])
        return 1
    seconds = time.monotonic() - started
    wanted = reference.hash_files()
    print(f"uninterrupted: {seconds:.0f} s, weights {wanted[0][:16]}", flush=True)

    killed, runs = 0, [Run(options, "killed-1")]
    while killed < options.kills:
        name = list(MOMENTS)[killed % len(MOMENTS)]
        told = kill_at(runs[-1], name, lot, seconds)
        if told is None:  # it came to its end
            runs.append(Run(options, f"killed-{len(runs) + 1}"))
            continue
        killed += 1
        print(f"kill {killed}, {runs[-1].folder.name}, {name}: {told}", flush=True)
    if not runs[-1].is_finished() and runs[-1].start().wait() != 0:
        print((runs[-1].folder / "log").read_text()[-2000:])
        return 1
    different = [run.folder.name for run in runs if run.hash_files() != wanted]
    for run in runs:
        print(f"{run.folder.name}: weights {run.hash_files()[0][:16]}")
    if different:
        print(f"DIFFERENT from the uninterrupted run: {', '.join(different)}")
        return 1
    print(f"{killed} kills in {len(runs)} runs: all bit-equal to the uninterrupted run.")
    return 0


class Run:
    """A run in a folder of its own: the output, the cache, and what was printed."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
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
                env=os.environ | {"PNEUMONIA_HF_CACHE": str(self.cache)},
                start_new_session=True,
            )

    def is_finished(self) -> bool:
        return (self.output / "config.json").exists()

    def hash_files(self) -> list[str]:
        return [hashlib.sha256((self.output / name).read_bytes()).hexdigest() for name in COMPARED]

    def torn_checkpoint(self) -> Path | None:
        """Return the checkpoint that is being written."""
        for path in self.output.glob("checkpoints/stage-*/checkpoint-*"):
            if not (path / "seal.json").exists():
                return path
        return None


def is_building_cache(run: Run) -> bool:
    """Return whether the store has begun, and training has not."""
    return any(run.cache.glob("*/*")) and not (run.output / "checkpoints/recipe.json").exists()


def is_training(run: Run) -> bool:
    """Return whether this process has logged a loss."""
    return b"'loss'" in (run.folder / "log").read_bytes()[run.log_before :]


def is_writing_checkpoint(run: Run) -> bool:
    """Return whether another checkpoint than the torn one of the kill before has begun."""
    return run.torn_checkpoint() not in (None, run.torn_before)


def is_making_folder(run: Run) -> bool:
    """Return whether the finished folder is being put together."""
    return (run.output / ".unfinished").exists()


# What to wait for, and the longest time, as a share of a whole run, to wait after it.
MOMENTS = {
    "while the cache is built": (is_building_cache, 0.02),
    "in an epoch": (is_training, 0.2),
    "while a checkpoint is written": (is_writing_checkpoint, 0.001),
    "in an epoch, again": (is_training, 0.2),
    "while another checkpoint is written": (is_writing_checkpoint, 0.001),
    "while the folder is made": (is_making_folder, 0.05),
}


def kill_at(run: Run, name: str, lot: random.Random, seconds: float) -> str | None:
    """Start a run, kill it at a moment, and say what was on disk; None if it ended before."""
    has_come, share = MOMENTS[name]
    if name == "while the cache is built":  # it is, the first time only
        shutil.rmtree(run.cache, ignore_errors=True)
        shutil.rmtree(run.output, ignore_errors=True)
    run.torn_before = run.torn_checkpoint()
    process = run.start()
    started = time.monotonic()
    while not has_come(run):
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
    sealed = sorted(
        str(path.parent.relative_to(run.output / "checkpoints"))
        for path in run.output.glob("checkpoints/stage-*/checkpoint-*/seal.json")
    )
    told = [f"sealed: {', '.join(sealed) or 'none'}"]
    torn = run.torn_checkpoint()
    if torn:
        told.append(f"torn: {torn.name} with {len(list(torn.iterdir()))} files")
    if is_making_folder(run):
        files = len(list((run.output / ".unfinished").iterdir()))
        told.append(f"unfinished folder with {files} files")
    if not (run.output / "checkpoints/recipe.json").exists():
        size = sum(path.stat().st_size for path in run.cache.rglob("*") if path.is_file())
        told.append(f"cache of {size} bytes")
    return "; ".join(told)


if __name__ == "__main__":
    raise SystemExit(main())
