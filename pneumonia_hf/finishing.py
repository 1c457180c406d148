"""The best checkpoint -> a finished model folder: calibrated, with threshold, manifest and card."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pneumonia_hf import __version__
from pneumonia_hf.augment import AugmentConfig
from pneumonia_hf.backbones import BACKBONES, ModelConfig, head_of
from pneumonia_hf.data import DataConfig
from pneumonia_hf.hub import REPORTS_FILE, RUN_FILE, check_finished, write_card, write_json
from pneumonia_hf.metrics import (
    bootstrap_intervals,
    choose_threshold,
    fit_temperature,
    to_probability,
)
from pneumonia_hf.predictor import CONFIG_KEY, Predictor
from pneumonia_hf.rows import LABELS
from pneumonia_hf.sources import open_pictures, parse_source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from pneumonia_hf.training import XrayTrainingArguments


@dataclass(frozen=True)
class Recipe:
    """What a run is made of, beside the Trainer's arguments."""

    data: DataConfig
    model: ModelConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def calibrate(predictor: Predictor, validation: Dataset, arguments: XrayTrainingArguments) -> dict:
    """Fold the temperature into the head of `predictor` and choose its operating point.

    Both come from the raw validation pictures, scored by the predictor itself.

    Returns:
        `config`: the settings for the model's config.json; `metrics`: what the model scores on
        the same pictures at its threshold, as value, low and high.
    """
    labels, patients = validation["label"][:], validation["patient"][:]
    margins = predictor.margins_of_pictures(open_pictures(validation))
    temperature = fit_temperature(labels, margins)
    # Dividing the head's weights divides the logits, so that a plain pipeline is calibrated too.
    head = head_of(predictor.model)
    with torch.no_grad():
        head.weight /= temperature
        head.bias /= temperature
    probabilities = to_probability(margins / temperature)
    point = choose_threshold(labels, probabilities, patients, arguments.required_sensitivity)
    metrics = bootstrap_intervals(labels, probabilities, point.threshold, patients, resamples=300)
    return {
        "config": {
            "threshold": point.threshold,
            "refer_low": point.low,
            "refer_high": point.high,
            "temperature": temperature,
            "calibrated_for_prevalence": 0.5,
            "required_sensitivity": arguments.required_sensitivity,
        },
        "metrics": {name: asdict(interval) for name, interval in metrics.items()},
    }


def finish_model(
    folder: Path,
    data: DatasetDict,
    recipe: Recipe,
    arguments: XrayTrainingArguments,
    hashes: dict[str, list[str]],
    progress: dict[str, Any],
) -> None:
    """Make the weights in `folder` a finished model: calibrated, described, with its card."""
    print("Calibrating and choosing the threshold on the validation part.", flush=True)
    # Loaded afresh: the Trainer's copy may still compute in half precision.
    predictor = Predictor.from_pretrained(folder)
    model = predictor.model
    validation = calibrate(predictor, data["validation"], arguments)
    setattr(model.config, CONFIG_KEY, validation["config"])
    model.save_pretrained(folder)
    (folder / "training_args.bin").unlink(missing_ok=True)  # it holds paths of this machine
    write_json(
        folder / RUN_FILE,
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": {
                **_origin(recipe.model),
                "model_type": model.config.model_type,
                "parameters": model.num_parameters(),
                "image_size": predictor.processor.size["height"],
                "trainable_stages": recipe.model.trainable_stages,
                "channels_last": recipe.model.channels_last,
            },
            "data": asdict(recipe.data)
            | {
                # Where data lies is the user's own affair.
                "data_dir": " + ".join(parse_source(one).name for one in recipe.data.data_dir),
                "cache_dir": None,
                "parts": {name: _describe(part) for name, part in data.items()},
            },
            "augmentation": asdict(recipe.augment),
            "training": _told(arguments) | progress,
            "validation": validation,
            "versions": {"pneumonia_hf": __version__, "python": platform.python_version()}
            | {name: version(name) for name in ("torch", "transformers", "accelerate")},
            "hardware": _hardware(),
            "hashes": hashes,
        },
    )
    write_card(folder)
    check_finished(folder)


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Move the files of a finished model into `folder`, over those of an older one."""
    # The model that is being replaced goes first by its config, without which nothing loads a
    # folder, and the new config comes last: a folder caught in between is no model at all.
    for name in ("config.json", REPORTS_FILE):
        (folder / name).unlink(missing_ok=True)
    # safetensors writes a file that only its owner can read.
    shutil.copymode(unfinished / RUN_FILE, unfinished / "model.safetensors")
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)


# What a reader needs to judge or repeat a run, beside the parts of data and model.
TOLD = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "lr_scheduler_type",
    "label_smoothing_factor",
    "class_weights",
    "early_stopping_patience",
    "seed",
)


def _told(arguments: XrayTrainingArguments) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in TOLD} | {
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
        "optimizer": str(getattr(arguments.optim, "value", arguments.optim)),
        "processes": arguments.world_size,
    }


def _describe(part: Dataset) -> dict[str, int]:
    labels = part["label"][:]
    return {
        "images": len(labels),
        "patients": len(set(part["patient"][:])),
        **{name: labels.count(label) for label, name in enumerate(LABELS)},
    }


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _origin(config: ModelConfig) -> dict[str, str | None]:
    """Return which weights the model comes from, and under which licence they are."""
    backbone = BACKBONES[config.backbone]
    told = {"backbone": config.backbone, "base_model": backbone.hub_id, "weights": None}
    if config.weights is None or config.weights.partition("@")[0] == backbone.hub_id:
        return told | {"license": backbone.license}
    if Path(config.weights).expanduser().exists():
        # Taken for a copy of the backbone's own: the card says where they come from.
        return told | {"license": backbone.license, "weights": _public_name(config.weights)}
    return told | {"license": "other", "base_model": config.weights.partition("@")[0]}


def _public_name(folder: str) -> str:
    """Return the name of a local folder: where it lies is the user's own affair."""
    return Path(folder).expanduser().resolve().name
