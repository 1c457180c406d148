"""The run state: what determines the weights of a run, and must not change when it resumes."""

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
from pneumonia_hf.distributed import is_sharded
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import hold_lock, read_json, write_json
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, MODEL_FILES
from pneumonia_hf.models.run_manifest import read_manifest
from pneumonia_hf.training.checkpoints import CHECKPOINTS, list_checkpoints

if TYPE_CHECKING:
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.recipe import Recipe

RUN_STATE_FILE = "recipe.json"  # named so by earlier versions, whose runs are still recognised
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
    if (output / STUDY_FILE).exists():
        return True
    return any(list_checkpoints(phase) for phase in (output / CHECKPOINTS).glob("phase-*"))


def clear(output: Path) -> None:
    """Remove the checkpoints of an older run; its state first, so that it cannot be resumed."""
    (output / CHECKPOINTS / RUN_STATE_FILE).unlink(missing_ok=True)
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
    settings = {
        name: value
        for name, value in arguments.to_dict().items()
        if isinstance(value, str | int | float | bool | list | dict | None)
        and name not in FREE
        and not name.startswith(("hub_", "push_", "_"))
    }
    return (
        asdict(recipe.model)
        | asdict(recipe.augment)
        | settings
        | {"precision": arguments.computed_precision, "hospitals": recipe.data.hospitals}
        | {f"{name} images": content for name, content in fingerprints.items()}
        | {
            # Another minor version may train differently with the same settings.
            "version of pneumonia_hf": ".".join(__version__.split(".")[:2]),
            "processes": arguments.world_size,
            "FSDP": is_sharded(),
        }
    )


def fingerprint(hashes: Sequence[str], labels: Sequence[int]) -> str:
    """Return the SHA-256 of a split: of the hashes and labels of its images, in order."""
    pairs = zip(hashes, labels, strict=True)
    lines = "".join(f"{digest} {label}\n" for digest, label in pairs)
    return hashlib.sha256(lines.encode()).hexdigest()


def create_run_state(output: Path, settings: dict[str, Any], resume: bool) -> str:
    """Write the state of a run beside its checkpoints and return its `run_id`.

    `settings` are as `describe_run` returns them. A resumed run keeps its state.

    Raises:
        UserError: a resumed run was started with other settings.
    """
    path = output / CHECKPOINTS / RUN_STATE_FILE
    before = read_json(path, otherwise=None) if resume and has_progress(output) else None
    if before is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        run_id = uuid4().hex
        write_json(path, {"made_of": settings, "run_id": run_id})
        return run_id
    old, run_id = before.get("made_of", {}), before.get("run_id", "")
    names = sorted({*old, *settings})
    changed = [name for name in names if old.get(name) != settings.get(name)]
    if not changed:
        return run_id
    changes = (_describe_change(name, old.get(name), settings.get(name)) for name in changed)
    # Checkpoints of a complete run lead to its end only; its weights begin another one.
    more = (
        f"train its model further with --weights {output} and another --output_dir, "
        if is_complete(output, run_id)
        else ""
    )
    raise UserError(
        f"The run in {output} was begun with other {', '.join(changes)}; "
        f"resume it with the original command, {more}or give --overwrite to start again."
    )


def _describe_change(name: str, old: Any, new: Any) -> str:
    """Return the name of a setting, with both values unless they are fingerprints."""
    if name.endswith(" images"):
        return name
    old, new = (json.dumps(value, sort_keys=True) for value in (old, new))
    return f"{name} ({old}, now {new})"


def is_complete(output: Path, run_id: str) -> bool:
    """Return whether `output` holds the saved model of the run `run_id`."""
    has_model = all((output / name).exists() for name in ("config.json", "model.safetensors"))
    return has_model and read_manifest(output).run_id == run_id
