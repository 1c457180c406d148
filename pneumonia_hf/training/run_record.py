"""The run record: what determines the weights of a run, and must not change when it resumes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pneumonia_hf import __version__
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import hold_lock, read_json, write_json
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, MODEL_FILES, RUN_FILE
from pneumonia_hf.training.checkpoints import CHECKPOINTS, list_checkpoints
from pneumonia_hf.training.distributed import is_sharded

if TYPE_CHECKING:
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.recipe import Recipe

RECIPE_FILE = "recipe.json"
LOCK_FILE = ".lock"
STUDY_FILE = "study.db"  # of a search, in its output folder
# Arguments that do not affect the weights of a run, and may differ when it is resumed.
FREE = {
    "output_dir", "resume", "overwrite", "seeds", "report_to", "project", "run_name",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "disable_tqdm", "logging_steps", "logging_strategy", "logging_first_step", "log_level",
    "log_level_replica", "log_on_each_node", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "save_total_limit",
    "save_on_each_node", "cpu_threads", "ddp_timeout", "local_rank",
    "bf16", "fp16",  # follow from `precision`
    "accelerator_config",  # always the default
}  # fmt: skip


def check_output_folder(arguments: XrayTrainingArguments) -> None:
    """Raise a UserError if training into `arguments.output_dir` would overwrite something."""
    folder = Path(arguments.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --output_dir takes a folder.")
    if arguments.overwrite and arguments.resume:
        raise UserError("--resume continues a run and --overwrite replaces it; choose one.")
    if arguments.overwrite:
        return
    has_run = has_progress(folder)
    if has_run and arguments.resume:
        if _is_older(folder):
            raise UserError(
                f"The run in {folder} is of version 0.4 or older, whose checkpoints have another "
                f"layout; give --overwrite to start again."
            )
        return
    held = sorted(name for name in (*MODEL_FILES, ENSEMBLE_FILE) if (folder / name).exists())
    if held and not (arguments.resume and arguments.seeds and held == [ENSEMBLE_FILE]):
        what = "a saved model" if "model.safetensors" in held else " and ".join(held)
        raise UserError(
            f"{folder} holds {what}; choose another --output_dir, or replace it with --overwrite."
        )
    if has_run:
        raise UserError(
            f"{folder} holds an unfinished run; give --resume to continue it, "
            f"or --overwrite to start again."
        )


def has_progress(output: Path) -> bool:
    """Return whether `output` holds checkpoints of a run, or a search."""
    if _is_older(output) or (output / STUDY_FILE).exists():
        return True
    return any(list_checkpoints(phase) for phase in (output / CHECKPOINTS).glob("phase-*"))


def _is_older(output: Path) -> bool:
    """Return whether the checkpoints in `output` are of version 0.4 or older."""
    checkpoints = output / CHECKPOINTS
    return any(checkpoints.glob("checkpoint-*")) or any(checkpoints.glob("stage-*/checkpoint-*"))


def clear(output: Path) -> None:
    """Remove the checkpoints of an older run; its record first, so that it cannot be resumed."""
    (output / CHECKPOINTS / RECIPE_FILE).unlink(missing_ok=True)
    for path in (output / CHECKPOINTS).glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK_FILE:
            path.unlink(missing_ok=True)


@contextmanager
def lock_run(output: Path) -> Iterator[None]:
    """Lock `output` against a second run.

    Raises:
        UserError: another process is training there, or the folder cannot be made.
    """
    try:
        (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{output} cannot be made ({error.strerror}); check --output_dir."
        raise UserError(message) from error
    busy = f"Another process is training in {output}; wait for it, or choose another --output_dir."
    with hold_lock(output / CHECKPOINTS / LOCK_FILE, busy):
        yield


def describe_run(
    recipe: Recipe, fingerprints: dict[str, str], arguments: XrayTrainingArguments
) -> dict[str, Any]:
    """Return all that determines the weights of a run; `fingerprints` are those of its splits."""
    made_of = asdict(recipe.model) | asdict(recipe.augment)
    made_of |= {
        name: value
        for name, value in arguments.to_dict().items()
        if isinstance(value, str | int | float | bool | list | dict | None)
        and name not in FREE
        and not name.startswith(("hub_", "push_", "_"))
    }
    made_of["precision"] = arguments.computed_precision
    made_of |= {f"{name} images": content for name, content in fingerprints.items()}
    # Another minor version may train differently with the same settings.
    version = ".".join(__version__.split(".")[:2])
    return made_of | {
        "version of pneumonia_hf": version,
        "processes": arguments.world_size,
        "FSDP": is_sharded(),
    }


def fingerprint(hashes: Sequence[str], labels: Sequence[int]) -> str:
    """Return the SHA-256 of a split: of the hashes and labels of its images, in order."""
    lines = "".join(f"{one} {label}\n" for one, label in zip(hashes, labels, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def create_run_record(output: Path, made_of: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Write the record of a run beside its checkpoints and return it.

    A resumed run keeps its record, and with it its `run_id`.

    Raises:
        UserError: a resumed run was started with other settings.
    """
    path = output / CHECKPOINTS / RECIPE_FILE
    before = read_json(path, otherwise=None) if resume and has_progress(output) else None
    if before is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"made_of": made_of, "run_id": uuid4().hex}
        write_json(path, record)
        return record
    was = before.get("made_of", {})
    names = sorted({*was, *made_of})
    if different := [name for name in names if was.get(name) != made_of.get(name)]:
        changes = (_describe_change(name, was.get(name), made_of.get(name)) for name in different)
        # Checkpoints of a complete run lead to its end only; its weights begin another one.
        more = (
            f"train its model further with --weights {output} and another --output_dir, "
            if is_complete(output, before.get("run_id", ""))
            else ""
        )
        raise UserError(
            f"The run in {output} was begun with other {', '.join(changes)}; "
            f"resume it with the original command, {more}or give --overwrite to start again."
        )
    return before


def _describe_change(name: str, was: Any, now: Any) -> str:
    """Return the name of a setting, with both values unless they are long."""
    if name.endswith(" images"):  # fingerprints say nothing to a person
        return name
    was, now = (json.dumps(value, sort_keys=True) for value in (was, now))
    return f"{name} ({was}, now {now})"


def is_complete(output: Path, run_id: str) -> bool:
    """Return whether `output` holds the saved model of the run `run_id`."""
    has_model = all((output / name).exists() for name in ("config.json", "model.safetensors"))
    return has_model and read_json(output / RUN_FILE, otherwise={}).get("run_id") == run_id
