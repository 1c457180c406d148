"""The run manifest, `run.json`."""

from __future__ import annotations

import subprocess
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import pneumonia_hf
from pneumonia_hf.data.patients import named_by_file
from pneumonia_hf.files import read_json
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.backbones import BACKBONES, count_trainable, freeze
from pneumonia_hf.models.build import NO_WEIGHTS, ModelConfig
from pneumonia_hf.models.model_folder import RUN_FILE

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from pneumonia_hf.data.table import XrayData
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.phases import Phase
    from pneumonia_hf.training.probe import Speed

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
ENDED = ("checkpoint", "metric", "steps", "epochs", "images_per_second")  # of each phase
NAMED_PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "timm")
# Where things lie is the user's own affair.
PLACES = ("output_dir", "teacher", "trackio_space_id", "run_name", "project", "overwrite", "resume")


def share_of_weights(model: PreTrainedModel, phase: Phase) -> float:
    """Return the share of the network's weights that learn in a phase."""
    freeze(model, phase.trainable_layer_groups)
    learning, weights = count_trainable(model)
    return round(learning / weights, 5)


def describe_training(arguments: XrayTrainingArguments, speed: Speed) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in TOLD} | {
        "precision": speed.precision,
        "optimizer": str(getattr(arguments.optim, "value", arguments.optim)),
        "teacher": _public_name(arguments.teacher) if arguments.teacher else None,
        "processes": arguments.world_size,
    }


def changed_arguments(arguments: XrayTrainingArguments) -> dict[str, Any]:
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


def describe_split(split: Dataset, data: XrayData) -> dict[str, int | float | bool]:
    """Return what a split holds, and its share of all images."""
    labels, patients = split["label"][:], set(split["patient"][:])
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


def describe_origin(config: ModelConfig, teacher: str | None = None) -> dict[str, str | None]:
    """Return which weights the model comes from, and under which licence they are."""
    backbone = BACKBONES[config.backbone]
    summary = {"backbone": config.backbone, "base_model": backbone.hub_id, "weights": None}
    licence = backbone.license
    if config.weights == NO_WEIGHTS or (config.weights is None and backbone.hub_id is None):
        summary["base_model"], licence = None, OUR_LICENCE
    elif config.weights is None or config.weights.partition("@")[0] == backbone.hub_id:
        pass
    elif Path(config.weights).expanduser().exists():
        # Taken for a copy of the backbone's own: the card says where they come from.
        summary["weights"] = _public_name(config.weights)
    else:
        licence, summary["base_model"] = "other", config.weights.partition("@")[0]
    return summary | {"license": licence if teacher is None else _teacher_licence(licence, teacher)}


def _teacher_licence(licence: str, teacher: str) -> str:
    """Return the licence of a student: a teacher's other licence may bind it too."""
    run = read_json(Path(teacher).expanduser() / RUN_FILE, otherwise={})
    theirs = run.get("model", {}).get("license")
    return licence if theirs == licence else "other"


def _public_name(folder: str) -> str:
    """Return the name of a local folder: where it lies is the user's own affair."""
    return Path(folder).expanduser().resolve().name
