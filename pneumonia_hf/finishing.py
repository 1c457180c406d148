"""The best checkpoint -> a finished model folder: calibrated, with threshold, manifest and card."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import pneumonia_hf
from pneumonia_hf import __version__
from pneumonia_hf.augment import AugmentConfig
from pneumonia_hf.backbones import (
    BACKBONES,
    NO_WEIGHTS,
    ModelConfig,
    count_trainable,
    freeze,
)
from pneumonia_hf.calibration import calibrate
from pneumonia_hf.curves import draw_curves
from pneumonia_hf.data import DataConfig
from pneumonia_hf.hub import (
    CODE_FILE,
    CURVES_FILE,
    ENSEMBLE_FILE,
    REPORTS_FILE,
    RUN_FILE,
    check_finished,
    read_json,
    write_card,
    write_json,
)
from pneumonia_hf.predictor import CONFIG_KEY, Predictor
from pneumonia_hf.rows import LABELS, named_by_file
from pneumonia_hf.sources import parse_source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedModel

    from pneumonia_hf.arguments import XrayTrainingArguments
    from pneumonia_hf.checkpoints import Outcome
    from pneumonia_hf.probe import Speed
    from pneumonia_hf.stages import Stage


@dataclass(frozen=True)
class Recipe:
    """What a run is made of, beside the Trainer's arguments."""

    data: DataConfig
    model: ModelConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def finish_model(
    folder: Path,
    data: DatasetDict,
    recipe: Recipe,
    arguments: XrayTrainingArguments,
    hashes: dict[str, list[str]],
    fingerprints: dict[str, str],
    stages: Sequence[Stage],
    outcomes: Sequence[Outcome],
    speed: Speed,
    progress: dict[str, Any],
) -> None:
    """Make the weights in `folder` a finished model: calibrated, described, with its card.

    Args:
        folder: weights and processor; it becomes the finished model folder.
        data: the parts; the raw pictures of `validation` are scored.
        recipe, arguments: what the run was told.
        hashes: of each part's pictures.
        fingerprints: of each part as a whole.
        stages, outcomes: what was trained, and how each ended.
        speed: the precision and memory format it was trained in.
        progress: `run_id`, `seconds`, `best_checkpoint` and the like, for the manifest.
    """
    print("Calibrating and choosing the threshold on the validation part.", flush=True)
    predictor = Predictor.from_pretrained(folder)
    model = predictor.model
    validation = calibrate(
        predictor,
        data["validation"],
        arguments.required_sensitivity,
        arguments.attribution_images,
    )
    setattr(model.config, CONFIG_KEY, validation["config"])
    model.save_pretrained(folder)
    draw_curves(folder / CURVES_FILE, outcomes, arguments)
    run_id = progress.pop("run_id")
    write_json(
        folder / RUN_FILE,
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "run_id": run_id,
            "model": {
                **_origin(recipe.model, arguments.teacher),
                "model_type": model.config.model_type,
                "parameters": model.num_parameters(),
                "image_size": predictor.processor.size["height"],
                "trainable_stages": recipe.model.trainable_stages,
                "channels_last": recipe.model.channels_last,
                "drop_path": recipe.model.drop_path,
                "dropout": recipe.model.dropout,
            },
            "data": asdict(recipe.data)
            | {
                # Where data lies is the user's own affair.
                "data_dir": " + ".join(parse_source(one).name for one in recipe.data.data_dir),
                "cache_dir": None,
                "parts": {name: _describe(part, data) for name, part in data.items()},
                "sha256": fingerprints,
            },
            "augmentation": asdict(recipe.augment),
            "training": _told(arguments, speed)
            | {
                "stages": [
                    asdict(stage)
                    | {"part": stage.part, "share_of_weights": _share(model, stage)}
                    | {name: getattr(outcome, name) for name in ENDED}
                    for stage, outcome in zip(stages, outcomes, strict=True)
                ],
                "epochs_run": sum(outcome.epochs for outcome in outcomes),
                "steps_run": sum(outcome.steps for outcome in outcomes),
                "images_per_second": outcomes[-1].images_per_second,
                "speeds_measured": speed.images_per_second,
            }
            | progress
            | {
                "history": [
                    entry | {"stage": number}
                    for number, outcome in enumerate(outcomes, start=1)
                    for entry in outcome.log
                    if "eval_auroc" in entry
                ]
            },
            "arguments": _changed(arguments),
            "validation": validation,
            "versions": {"pneumonia_hf": __version__, "python": platform.python_version()}
            | {name: version(name) for name in NAMED_PACKAGES},
            "git_commit": find_commit(),
            "hardware": describe_hardware(),
            "hashes": hashes,
        },
    )
    write_card(folder)
    check_finished(folder)


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Move the files of a finished model into `folder`, over those of an older one."""
    # The model that is being replaced goes first by its config, without which nothing loads a
    # folder, and the new config comes last: a folder caught in between is no model at all.
    for name in ("config.json", REPORTS_FILE, ENSEMBLE_FILE, CODE_FILE):
        (folder / name).unlink(missing_ok=True)
    # safetensors writes a file that only its owner can read.
    shutil.copymode(unfinished / RUN_FILE, unfinished / "model.safetensors")
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)


OUR_LICENCE = "apache-2.0"  # of what owes nothing to other weights

# What a reader needs to judge or repeat a run, beside the parts of data and model; what else was
# changed from its default stands under `arguments`.
TOLD = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "layer_decay",
    "weight_decay",
    "warmup_steps",
    "lr_scheduler_type",
    "label_smoothing_factor",
    "imbalance",
    "mixup",
    "cutmix",
    "ema_decay",
    "metric_for_best_model",
    "early_stopping_patience",
    "seed",
)
ENDED = ("checkpoint", "metric", "steps", "epochs", "images_per_second")  # of each stage
NAMED_PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "timm")
# Where things lie is the user's own affair.
PLACES = ("output_dir", "teacher", "trackio_space_id", "run_name", "project", "overwrite", "resume")


def _share(model: PreTrainedModel, stage: Stage) -> float:
    """Return the share of the network's weights that learn in a stage."""
    freeze(model, stage.trainable_stages)
    learning, weights = count_trainable(model)
    return round(learning / weights, 5)


def _told(arguments: XrayTrainingArguments, speed: Speed) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in TOLD} | {
        "precision": speed.precision,
        "optimizer": str(getattr(arguments.optim, "value", arguments.optim)),
        "teacher": _public_name(arguments.teacher) if arguments.teacher else None,
        "processes": arguments.world_size,
    }


def _changed(arguments: XrayTrainingArguments) -> dict[str, Any]:
    """Return the arguments that differ from their defaults."""
    defaults = {one.name: one.default for one in fields(arguments)}
    return {
        name: value
        for name, value in arguments.to_dict().items()
        if name in defaults
        and isinstance(value, str | int | float | bool | list)
        and value != defaults[name]
        and (value or isinstance(defaults[name], bool | int | float))
        and name not in ("disable_tqdm", "dataloader_pin_memory", "greater_is_better")
        and not (name == "report_to" or name in PLACES or name.startswith(("hub_", "push_")))
    }


def find_commit() -> str | None:
    """Return the git commit of this code, `+changes` where files differ from it; None without."""
    # By the package and not by this file, which may move within it. No search upwards: the folder
    # of an environment may lie in a repository of something else.
    root = Path(pneumonia_hf.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None  # installed, or unpacked from an archive

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = ask("status", "--porcelain", "--untracked-files=no")
        return ask("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _describe(part: Dataset, data: DatasetDict) -> dict[str, int | float | bool]:
    """Return what a split holds, and its share of all images."""
    labels, patients = part["label"][:], set(part["patient"][:])
    return {
        "images": len(labels),
        "share": round(len(labels) / sum(len(one) for one in data.values()), 4),
        "patients": len(patients),
        "patients_by_file_name": named_by_file(patients),
        **{name: labels.count(label) for label, name in enumerate(LABELS)},
    }


def describe_hardware() -> str:
    """Return what this process computes on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _origin(config: ModelConfig, teacher: str | None = None) -> dict[str, str | None]:
    """Return which weights the model comes from, and under which licence they are."""
    backbone = BACKBONES[config.backbone]
    told = {"backbone": config.backbone, "base_model": backbone.hub_id, "weights": None}
    licence = backbone.license
    if config.weights == NO_WEIGHTS or (config.weights is None and backbone.hub_id is None):
        told["base_model"], licence = None, OUR_LICENCE
    elif config.weights is None or config.weights.partition("@")[0] == backbone.hub_id:
        pass
    elif Path(config.weights).expanduser().exists():
        # Taken for a copy of the backbone's own: the card says where they come from.
        told["weights"] = _public_name(config.weights)
    else:
        licence, told["base_model"] = "other", config.weights.partition("@")[0]
    return told | {"license": licence if teacher is None else _teacher_licence(licence, teacher)}


def _teacher_licence(licence: str, teacher: str) -> str:
    """Return the licence of a student: a teacher's other licence may bind it too."""
    run = read_json(Path(teacher).expanduser() / RUN_FILE, otherwise={})
    theirs = run.get("model", {}).get("license")
    return licence if theirs == licence else "other"


def _public_name(folder: str) -> str:
    """Return the name of a local folder: where it lies is the user's own affair."""
    return Path(folder).expanduser().resolve().name
