"""The run manifest, `run.json`."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import pneumonia_hf
from pneumonia_hf.data.patients import named_by_file
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.files import read_json
from pneumonia_hf.hub import find_file, public_name
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.backbones import BACKBONES, count_trainable, freeze
from pneumonia_hf.models.build import NO_WEIGHTS, ModelConfig
from pneumonia_hf.models.model_folder import RUN_FILE
from pneumonia_hf.training.distillation import UNLABELLED

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from pneumonia_hf.data.table import XrayData
    from pneumonia_hf.inference.network import Network
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.phases import Outcome, Phase
    from pneumonia_hf.training.recipe import Recipe

OUR_LICENCE = "apache-2.0"  # of models that were trained from no other weights
# The arguments that a reader needs to judge or repeat a run. Others are listed under `arguments`
# if they differ from their defaults.
MAIN_ARGUMENTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
    "learning_rate", "layer_decay", "weight_decay", "warmup_steps", "lr_scheduler_type",
    "label_smoothing_factor", "imbalance", "mixup", "cutmix", "ema_decay",
    "average_from", "metric_for_best_model", "early_stopping_patience", "seed",
)  # fmt: skip
NAMED_PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "timm")
# Local paths and names are private to the user; the others follow from further arguments.
UNNAMED = {
    "output_dir", "teacher", "unlabelled", "trackio_space_id", "run_name", "project", "overwrite",
    "resume", "report_to",
    "disable_tqdm", "dataloader_pin_memory", "greater_is_better", "bf16", "fp16", "use_cpu",
}  # fmt: skip


@dataclass(frozen=True)
class RunFacts:
    """The facts of a complete run for its manifest."""

    run_id: str
    recipe: Recipe
    arguments: XrayTrainingArguments
    data: XrayData
    hashes: dict[str, list[str]]  # of the images of each split
    fingerprints: dict[str, str]  # of each split
    phases: Sequence[Phase]
    outcomes: Sequence[Outcome]  # of the phases
    best: int  # index of the phase with the best checkpoint
    seconds: int  # since the run was last started


def make_manifest(facts: RunFacts, network: Network, validation: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of `run.json`; `validation` is what `calibrate` returns."""
    recipe, arguments, outcomes = facts.recipe, facts.arguments, facts.outcomes
    best = outcomes[facts.best]
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": facts.run_id,
        "model": {
            **describe_origin(recipe.model, arguments.teacher),
            "model_type": network.model.config.model_type,
            "parameters": network.model.num_parameters(),
            "image_size": network.processor.size["height"],
            "trainable_stages": recipe.model.trainable_layer_groups,
            "channels_last": recipe.model.channels_last,
            "drop_path": recipe.model.drop_path,
            "dropout": recipe.model.dropout,
        },
        "data": asdict(recipe.data)
        | {
            "data_dir": " + ".join(parse_source(one).name for one in recipe.data.data_dir),
            "cache_dir": None,
            **{
                name: (path := getattr(recipe.data, name)) and public_name(path)
                for name in ("test_images", "exclude_images")
            },
            UNLABELLED: {
                "folders": [public_name(one) for one in arguments.unlabelled or []],
                "images": len(facts.hashes.get(UNLABELLED, [])),
            },
            "parts": {name: _describe_split(one, facts.data) for name, one in facts.data.items()},
            "sha256": facts.fingerprints,
        },
        "augmentation": asdict(recipe.augment),
        "training": {name: getattr(arguments, name) for name in MAIN_ARGUMENTS}
        | {
            "precision": arguments.computed_precision,
            "optimizer": str(getattr(arguments.optim, "value", arguments.optim)),
            "teacher": public_name(arguments.teacher) if arguments.teacher else None,
            "processes": arguments.world_size,
            "stages": [
                _describe_phase(network.model, phase, outcome)
                for phase, outcome in zip(facts.phases, outcomes, strict=True)
            ],
            "epochs_run": sum(outcome.epochs for outcome in outcomes),
            "steps_run": sum(outcome.steps for outcome in outcomes),
            "images_per_second": outcomes[-1].images_per_second,
            "best_checkpoint": f"phase-{facts.best + 1}/{best.checkpoint}",
            "best_validation_metric": best.metric,
            "seconds": facts.seconds,
            "resumed": arguments.resume,
            "history": [
                entry | {"stage": number}
                for number, outcome in enumerate(outcomes, start=1)
                for entry in outcome.log
                if "eval_auroc" in entry
            ],
        },
        "arguments": _changed_arguments(arguments),
        "validation": validation,
        "versions": {"pneumonia_hf": pneumonia_hf.__version__, "python": platform.python_version()}
        | {name: version(name) for name in NAMED_PACKAGES},
        "git_commit": find_commit(),
        "hardware": describe_hardware(),
        "hashes": facts.hashes,
    }


def _describe_phase(model: PreTrainedModel, phase: Phase, outcome: Outcome) -> dict[str, Any]:
    freeze(model, phase.trainable_layer_groups)
    learning, weights = count_trainable(model)
    return {
        "trainable_stages": phase.trainable_layer_groups,
        "epochs": outcome.epochs,
        "learning_rate": phase.learning_rate,
        "part": phase.name,
        "share_of_weights": round(learning / weights, 5),
        "checkpoint": outcome.checkpoint,
        "metric": outcome.metric,
        "steps": outcome.steps,
        "images_per_second": outcome.images_per_second,
    }


def _changed_arguments(arguments: XrayTrainingArguments) -> dict[str, Any]:
    """Return the arguments that differ from their defaults."""
    defaults = {one.name: one.default for one in fields(arguments)}
    return {
        name: value
        for name, value in arguments.to_dict().items()
        if name in defaults
        and isinstance(value, str | int | float | bool | list)
        and value != defaults[name]
        and (value or isinstance(defaults[name], bool | int | float))
        and not (name in UNNAMED or name.startswith(("hub_", "push_")))
    }


def find_commit() -> str | None:
    """Return the git commit of this code, with `+changes` if files differ; None without git."""
    # No search in the parent folders: an environment may lie in the repository of another project.
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


def _describe_split(split: Dataset, data: XrayData) -> dict[str, int | float | bool]:
    """Return the sizes of a split, and its share of all images."""
    labels, patients = split["label"][:], set(split["patient"][:])
    return {
        "images": len(labels),
        "share": round(len(labels) / sum(len(one) for one in data.values()), 4),
        "patients": len(patients),
        "patients_by_file_name": named_by_file(patients),
        **{name: labels.count(label) for label, name in enumerate(LABELS)},
    }


def describe_hardware() -> str:
    """Return the hardware of this process in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def describe_origin(config: ModelConfig, teacher: str | None = None) -> dict[str, str | None]:
    """Return the origin and licence of the weights that the model starts from."""
    backbone = BACKBONES[config.backbone]
    origin = {"backbone": config.backbone, "base_model": backbone.hub_id, "weights": None}
    licence = backbone.license
    if config.weights == NO_WEIGHTS or (config.weights is None and backbone.hub_id is None):
        origin["base_model"], licence = None, OUR_LICENCE
    elif config.weights is None or config.weights.partition("@")[0] == backbone.hub_id:
        pass
    elif Path(config.weights).expanduser().exists():
        # Without a manifest, assumed to be a copy of the backbone's own weights; the card names
        # the folder.
        origin["weights"] = public_name(config.weights)
        licence = _read_licence(config.weights, licence)
    else:
        licence = _read_licence(config.weights, "other")
        origin["base_model"] = config.weights.partition("@")[0]
    if teacher is not None and _read_licence(teacher, "other") != licence:
        licence = "other"  # the teacher's licence may apply to the student too
    return origin | {"license": licence}


def _read_licence(model: str, otherwise: str) -> str:
    """Return the licence in the manifest of a folder or a downloaded Hub model."""
    file = find_file(model, RUN_FILE)
    run = read_json(file, otherwise={}) if file else {}
    made = run.get("model") if isinstance(run, dict) else None  # others may use the file's name
    return made.get("license", otherwise) if isinstance(made, dict) else otherwise
