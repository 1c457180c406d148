"""What a run keeps on disk while it goes on, so that nothing is lost and nothing torn is used.

OUTPUT/checkpoints/recipe.json       what the run is made of; a resumed one must be the same
OUTPUT/checkpoints/phase-1/          the Trainer's folder of a phase
    checkpoint-93/                   the Trainer's checkpoint, and seal.json, which is written last
    outcome.json                     when the phase is over: its best checkpoint and its log
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pneumonia_hf.errors import UserError
from pneumonia_hf.files import read_json, write_json
from pneumonia_hf.training.phases import Outcome

CHECKPOINTS = "checkpoints"  # folder inside the output folder
OUTCOME_FILE = "outcome.json"
SEAL_FILE = "seal.json"
STATE_FILE = "trainer_state.json"
AVERAGE_FILE = "average.safetensors"  # the averaged weights, where a run averages them


def phase_folder(output: Path, number: int) -> Path:
    """Return the Trainer's folder of a phase of the run in `output`; the first has number 1."""
    return output / CHECKPOINTS / f"phase-{number}"


def read_outcome(folder: Path) -> Outcome | None:
    """Return how the phase in `folder` ended, or None if it has not."""
    summary = read_json(folder / OUTCOME_FILE, otherwise=None)
    if summary is None or not is_whole(folder / summary["checkpoint"]):
        return None
    return Outcome(**summary)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Note that the phase in `folder` is over."""
    write_json(folder / OUTCOME_FILE, asdict(outcome))


def seal(checkpoint: Path, processes: int) -> None:
    """Note that `checkpoint` was written to its end: its files and their sizes."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    sizes = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in files
        if path.name != SEAL_FILE
    }
    flush_to_disk(files)  # a power cut after the seal finds what the seal says
    write_json(checkpoint / SEAL_FILE, {"processes": processes, "bytes": sizes})


def flush_to_disk(files: Sequence[Path]) -> None:
    """Return when the disk itself has what was written to `files`."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def is_whole(checkpoint: Path) -> bool:
    """Return whether `checkpoint` was written to its end and is as it was then."""
    try:
        sizes = (read_json(checkpoint / SEAL_FILE, otherwise=None) or {}).get("bytes")
        return bool(sizes) and all(
            (checkpoint / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, UserError):
        return False


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints in the folder of a phase, oldest first.

    What a kill or a full disk cut off has no seal, and is passed over.
    """
    steps = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and is_whole(path)
    }
    return [steps[step] for step in sorted(steps)]


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in the folder of a phase that is whole, or None."""
    return (list_checkpoints(folder) or [None])[-1]


def best_beside(checkpoint: Path) -> Path | None:
    """Return the best checkpoint that `checkpoint` knows of, or None if it knows none.

    The Trainer names it by the path at which it was written; the run may have been moved since.
    """
    best = read_json(checkpoint / STATE_FILE, otherwise={}).get("best_model_checkpoint")
    here = checkpoint.parent / Path(best).name if best else None
    return here if here and is_whole(here) else None


def remove_old(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints of a phase but `keep`; the best and the newest stay."""
    if keep is None:
        return
    *older, newest = list_checkpoints(folder)
    kept = {newest.name, Path(best).name if best else newest.name}
    for path in reversed(older):
        if path.name not in kept and len(kept) < keep:
            kept.add(path.name)
    for path in folder.glob("checkpoint-*"):
        if path.name not in kept:  # also what a kill cut off
            # Without its seal first, so that a kill in between leaves nothing that looks whole.
            (path / SEAL_FILE).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
