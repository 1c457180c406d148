"""What a run keeps on disk while it goes on, so that nothing is lost and nothing torn is used.

OUTPUT/checkpoints/recipe.json       what the run is made of; a resumed one must be the same
OUTPUT/checkpoints/stage-1/          the Trainer's folder of a stage
    checkpoint-93/                   the Trainer's checkpoint, and seal.json, which is written last
    outcome.json                     when the stage is over: its best checkpoint and its log
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pneumonia_hf import __version__
from pneumonia_hf.errors import UserError
from pneumonia_hf.hub import ENSEMBLE_FILE, MODEL_FILES, RUN_FILE, read_json, write_json

if TYPE_CHECKING:
    from pneumonia_hf.arguments import XrayTrainingArguments
    from pneumonia_hf.finishing import Recipe

CHECKPOINTS = "checkpoints"  # folder inside the output folder
RECIPE_FILE = "recipe.json"
OUTCOME_FILE = "outcome.json"
SEAL_FILE = "seal.json"
STATE_FILE = "trainer_state.json"
LOCK_FILE = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # of network disks
STUDY_FILE = "study.db"  # of a search, in its output folder
AVERAGE_FILE = "average.safetensors"  # the averaged weights, where a run averages them

# What does not change the weights that a run ends with, and may differ when it goes on.
FREE = {
    "output_dir", "resume", "overwrite", "seeds", "report_to", "project", "run_name",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "disable_tqdm", "logging_steps", "logging_strategy", "logging_first_step", "log_level",
    "log_level_replica", "log_on_each_node", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "save_total_limit",
    "save_on_each_node", "cpu_threads", "ddp_timeout", "local_rank",
    "bf16", "fp16",  # they follow from `precision`; what was found is noted apart
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a stage of training ended."""

    checkpoint: str  # the name of the best one, or of the last where best is not asked for
    metric: float | None  # its validation metric
    steps: int
    epochs: float
    images_per_second: float | None  # since the stage was last resumed, evaluations included
    log: list[dict[str, Any]]  # the Trainer's


def stage_folder(output: Path, number: int) -> Path:
    """Return the Trainer's folder of a stage of the run in `output`; the first has number 1."""
    return output / CHECKPOINTS / f"stage-{number}"


def read_outcome(folder: Path) -> Outcome | None:
    """Return how the stage in `folder` ended, or None if it has not."""
    told = read_json(folder / OUTCOME_FILE, otherwise=None)
    if told is None or not is_whole(folder / told["checkpoint"]):
        return None
    return Outcome(**told)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Note that the stage in `folder` is over."""
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
    """Return the whole checkpoints in the folder of a stage, oldest first.

    What a kill or a full disk cut off has no seal, and is passed over.
    """
    steps = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and is_whole(path)
    }
    return [steps[step] for step in sorted(steps)]


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in the folder of a stage that is whole, or None."""
    return (list_checkpoints(folder) or [None])[-1]


def best_beside(checkpoint: Path) -> Path | None:
    """Return the best checkpoint that `checkpoint` knows of, or None if it knows none.

    The Trainer names it by the path at which it was written; the run may have been moved since.
    """
    best = read_json(checkpoint / STATE_FILE, otherwise={}).get("best_model_checkpoint")
    here = checkpoint.parent / Path(best).name if best else None
    return here if here and is_whole(here) else None


def remove_old(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints of a stage but `keep`; the best and the newest stay."""
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


def check_output_folder(arguments: XrayTrainingArguments) -> None:
    """Raise a UserError if training into `arguments.output_dir` would destroy something."""
    folder = Path(arguments.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --output_dir takes a folder.")
    if arguments.overwrite and arguments.resume:
        raise UserError("--resume goes on with a run and --overwrite replaces it; choose one.")
    if arguments.overwrite:
        return
    begun = has_progress(folder)
    if begun and arguments.resume:
        if any((folder / CHECKPOINTS).glob("checkpoint-*")):
            raise UserError(
                f"The run in {folder} was begun by version 0.2 or older, whose checkpoints are "
                f"kept otherwise; give --overwrite to begin anew."
            )
        return
    held = sorted(name for name in (*MODEL_FILES, ENSEMBLE_FILE) if (folder / name).exists())
    if held and not (arguments.resume and arguments.seeds and held == [ENSEMBLE_FILE]):
        what = "a finished model" if "model.safetensors" in held else " and ".join(held)
        raise UserError(
            f"{folder} holds {what}; choose another --output_dir, "
            f"or give --overwrite to replace it."
        )
    if begun:
        raise UserError(
            f"{folder} holds an unfinished run; give --resume to go on with it, "
            f"or --overwrite to begin anew."
        )


def has_progress(output: Path) -> bool:
    """Return whether a run in `output` has come so far that there is something to lose."""
    checkpoints = output / CHECKPOINTS
    older = any(checkpoints.glob("checkpoint-*"))  # of version 0.2 and before
    if older or (output / STUDY_FILE).exists():
        return True
    return any(list_checkpoints(stage) for stage in checkpoints.glob("stage-*"))


def clear(output: Path) -> None:
    """Remove the checkpoints of an older run; the recipe first, so that none is resumed half."""
    (output / CHECKPOINTS / RECIPE_FILE).unlink(missing_ok=True)
    for path in (output / CHECKPOINTS).glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK_FILE:
            path.unlink(missing_ok=True)


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Keep a second run out of `output`; the lock is freed when its process ends, however.

    Raises:
        UserError: another process trains there, or the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be made ({error.strerror}); check --output_dir.") from (
            error
        )
    lock = FileLock(output / CHECKPOINTS / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"Another process is training in {output}; wait for it, or choose another --output_dir."
        ) from error
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        logging.getLogger(__name__).warning(
            f"The disk of {output} knows no locks: see to it that no second process trains there."
        )
    try:
        yield
    finally:
        lock.release()


def describe_run(
    recipe: Recipe,
    fingerprints: dict[str, str],
    arguments: XrayTrainingArguments,
) -> dict[str, Any]:
    """Return all that decides which weights a run ends with; `fingerprints` are of its parts."""
    made_of = asdict(recipe.model) | asdict(recipe.augment)
    made_of |= {name: value for name, value in _plain(arguments).items() if name not in FREE}
    made_of |= {f"{name} pictures": content for name, content in fingerprints.items()}
    # Between minor versions the same settings may mean other stages or other augmentation.
    version = ".".join(__version__.split(".")[:2])
    return made_of | {
        "version of pneumonia_hf": version,
        "processes": arguments.world_size,
        "FSDP": is_sharded(),
    }


def is_sharded() -> bool:
    """Return whether this process was launched for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def fingerprint(hashes: Sequence[str], labels: Sequence[int]) -> str:
    """Return the SHA-256 of a part: of its pictures' hashes and labels, in order."""
    lines = "".join(f"{one} {label}\n" for one, label in zip(hashes, labels, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _plain(arguments: XrayTrainingArguments) -> dict[str, Any]:
    return {
        name: value
        for name, value in arguments.to_dict().items()
        if isinstance(value, str | int | float | bool | list | None)
        and not name.startswith(("hub_", "push_", "_"))
    }


def keep_recipe(output: Path, made_of: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Note what a run is made of beside its checkpoints, and return what is noted.

    The note of a resumed run stays; it also holds what the run has found out since.

    Raises:
        UserError: a resumed run was begun with something else.
    """
    path = output / CHECKPOINTS / RECIPE_FILE
    before = read_json(path, otherwise=None) if resume and has_progress(output) else None
    if before is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        noted = {"made_of": made_of, "run_id": uuid4().hex}
        write_json(path, noted)
        return noted
    was = before.get("made_of", {})
    different = sorted(
        name for name in {*was, *made_of} if was.get(name, None) != made_of.get(name, None)
    )
    if different:
        raise UserError(
            f"The run in {output} was begun with other {', '.join(different)}; "
            f"resume it with the command that began it, or give --overwrite to begin anew."
        )
    return before


def note(output: Path, **found: Any) -> None:
    """Add to the note of a run what it has found out, such as the precision it computes in."""
    path = output / CHECKPOINTS / RECIPE_FILE
    write_json(path, read_json(path, otherwise={}) | found)


def is_finished(output: Path, run_id: str) -> bool:
    """Return whether `output` holds the finished model of this very run."""
    run = read_json(output / RUN_FILE, otherwise={})
    whole = all((output / name).exists() for name in ("config.json", "model.safetensors"))
    return whole and run.get("run_id") == run_id
