"""Checkpoints: written to a temporary folder, flushed, renamed. One that exists is complete.

OUTPUT/checkpoints/recipe.json       the run state, which must not change when a run is resumed
OUTPUT/checkpoints/phase-1/          the Trainer's folder of a training phase
    checkpoint-93/                   the Trainer's checkpoint
    .unfinished/                     a checkpoint that is being written or removed
    outcome.json                     the best checkpoint and the log of a complete phase
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.trainer_utils import sort_checkpoints

from pneumonia_hf.files import flush_to_disk, read_json
from pneumonia_hf.training.phases import Outcome

if TYPE_CHECKING:
    from pneumonia_hf.training.arguments import XrayTrainingArguments

CHECKPOINTS = "checkpoints"  # folder inside the output folder
UNFINISHED = ".unfinished"
OUTCOME_FILE = "outcome.json"
STATE_FILE = "trainer_state.json"


def phase_folder(output: Path, number: int) -> Path:
    """Return the Trainer's folder of a phase of the run in `output`; the first has number 1."""
    return output / CHECKPOINTS / f"phase-{number}"


def read_outcome(folder: Path) -> Outcome | None:
    """Return the outcome of the phase in `folder`, or None if it is not complete."""
    saved = read_json(folder / OUTCOME_FILE, otherwise=None)
    if saved is None or not (folder / saved["checkpoint"]).is_dir():
        return None
    return Outcome(**saved)


def install_checkpoint(folder: Path, name: str) -> None:
    """Move the checkpoint `name` from the temporary folder into the phase's folder.

    Does nothing if another process that shares the disk has done it.
    """
    staged = folder / UNFINISHED / name
    if not staged.exists():
        return
    # A checkpoint that exists must be complete after a power cut too.
    flush_to_disk([path for path in staged.rglob("*") if path.is_file()])
    remove_checkpoint(folder / name)
    os.replace(staged, folder / name)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, so that a kill in between leaves nothing that looks complete."""
    if not checkpoint.exists():
        return
    doomed = checkpoint.parent / UNFINISHED / f"removed-{checkpoint.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    doomed.parent.mkdir(exist_ok=True)
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def list_checkpoints(folder: Path, best: str | None = None) -> list[Path]:
    """Return the checkpoints in the folder of a phase, oldest first, but `best` before the last."""
    paths = map(Path, sort_checkpoints(str(folder), best_model_checkpoint=best))
    # A copy that the user has made beside them is none.
    return [path for path in paths if path.name.removeprefix("checkpoint-").isdigit()]


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in the folder of a phase, or None."""
    return (list_checkpoints(folder) or [None])[-1]


def remove_old(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove all but `keep` checkpoints of a phase: the best, the newest, then newer ones."""
    if keep is None:
        return
    for path in list_checkpoints(folder, best)[:-keep]:
        if str(path) != best:
            remove_checkpoint(path)


def is_exhausted(log: list[dict[str, Any]], arguments: XrayTrainingArguments) -> bool:
    """Return whether early stopping is due, counted from the log: so a resumed run agrees."""
    metric = f"eval_{arguments.metric_for_best_model}"
    sign = 1 if arguments.greater_is_better else -1
    values = [sign * entry[metric] for entry in log if metric in entry]
    if not values or not arguments.early_stopping_patience:
        return False
    return len(values) - 1 - int(np.argmax(values)) >= arguments.early_stopping_patience


def choose_outcome(outcomes: Sequence[Outcome], arguments: XrayTrainingArguments) -> int:
    """Return the index of the phase with the best checkpoint; the last where none is chosen."""
    values = [outcome.metric for outcome in outcomes]
    if not arguments.load_best_model_at_end or None in values:
        return len(outcomes) - 1
    return int(np.argmax(values) if arguments.greater_is_better else np.argmin(values))
