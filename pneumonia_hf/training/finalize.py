"""finalize: the best weights of a run -> a saved model folder with its run manifest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pneumonia_hf.data.load import IMAGE_LISTS
from pneumonia_hf.data.patients import named_by_file
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.evaluation.gate_fit import fit_gate
from pneumonia_hf.evaluation.perturbations import ROBUST
from pneumonia_hf.evaluation.recalibrate import calibrate
from pneumonia_hf.files import write_json
from pneumonia_hf.hub import public_name
from pneumonia_hf.inference.network import CONFIG_KEY, Network
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.backbones import count_trainable, freeze
from pneumonia_hf.models.model_card import hospital_table, write_card
from pneumonia_hf.models.model_folder import (
    CURVES_FILE,
    RUN_FILE,
    check_model_folder,
    install_model_folder,
)
from pneumonia_hf.training.averaging import load_best
from pneumonia_hf.training.checkpoints import UNFINISHED, choose_outcome, phase_folder
from pneumonia_hf.training.curves import draw_curves
from pneumonia_hf.training.distillation import UNLABELLED
from pneumonia_hf.training.provenance import (
    describe_hardware,
    describe_origin,
    find_commit,
    list_versions,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from pneumonia_hf.data.table import XrayData
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.phases import Outcome, Phase
    from pneumonia_hf.training.run import Run

# The arguments that a reader needs to judge or repeat a run. Others are listed under `arguments`
# if they differ from their defaults.
MAIN_ARGUMENTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
    "learning_rate", "layer_decay", "weight_decay", "warmup_steps", "lr_scheduler_type",
    "label_smoothing_factor", "imbalance", "mixup", "cutmix", "ema_decay",
    "average_from", "metric_for_best_model", "early_stopping_patience", "seed",
)  # fmt: skip
# Local paths and names are private to the user; the others follow from further arguments.
UNNAMED = {
    "output_dir", "teacher", "unlabelled", "trackio_space_id", "run_name", "project", "overwrite",
    "resume", "report_to",
    "disable_tqdm", "dataloader_pin_memory", "greater_is_better", "bf16", "fp16", "use_cpu",
}  # fmt: skip


def finalize(run: Run, outcomes: Sequence[Outcome]) -> None:
    """Save the model with the best weights of a run, calibrated, in its output folder.

    It gets threshold, input gate, manifest, curves and card. It is assembled in a temporary
    folder: an older model stays until the new one is complete.
    """
    arguments, data = run.arguments, run.images.data
    seconds = round(time.monotonic() - run.started)
    best = choose_outcome(outcomes, arguments)
    model = load_best(phase_folder(run.folder, best + 1) / outcomes[best].checkpoint)
    unfinished = run.folder / UNFINISHED
    try:
        model.save_pretrained(unfinished)
        run.processor.save_pretrained(unfinished)
        # The saved files are calibrated, not the model in memory.
        network = Network.load(unfinished, str(run.folder))
        print("Calibrating and choosing the threshold on the validation split.", flush=True)
        validation = calibrate(
            Predictor(network),
            data["validation"],
            arguments.required_sensitivity,
            arguments.attribution_images,
            resamples=arguments.bootstrap_resamples,
            threshold_resamples=arguments.threshold_resamples,
            with_copies=arguments.metric_for_best_model == ROBUST,
        )
        if table := hospital_table(validation["hospitals"]):
            print(table, flush=True)
        setattr(network.model.config, CONFIG_KEY, validation["config"])
        network.model.save_pretrained(unfinished)
        threshold = validation["config"]["threshold"]
        if gate := fit_gate(network, data["train"], data["validation"], threshold):
            gate.save(unfinished)
        draw_curves(unfinished / CURVES_FILE, outcomes, arguments)
        write_json(
            unfinished / RUN_FILE, make_manifest(run, outcomes, seconds, network, validation)
        )
        write_card(unfinished)
        check_model_folder(unfinished)
        install_model_folder(unfinished, run.folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def make_manifest(
    run: Run,
    outcomes: Sequence[Outcome],
    seconds: int,
    network: Network,
    validation: dict[str, Any],
) -> dict[str, Any]:
    """Return the contents of `run.json`.

    `outcomes` are of the phases, `seconds` those of training since its last start, `network` is
    the saved model, and `validation` what `calibrate` returned.
    """
    recipe, arguments, images = run.recipe, run.arguments, run.images
    best = choose_outcome(outcomes, arguments)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": run.run_id,
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
            "data_dir": " + ".join(parse_source(text).name for text in recipe.data.data_dir),
            "datasets": _list_datasets(recipe.data.data_dir),
            "cache_dir": None,
            **{
                name: [public_name(path) for path in getattr(recipe.data, name) or []]
                for name in IMAGE_LISTS
            },
            UNLABELLED: {
                "folders": [public_name(folder) for folder in arguments.unlabelled or []],
                "images": len(images.hashes.get(UNLABELLED, [])),
            },
            "parts": {
                name: _describe_split(split, images.data) for name, split in images.data.items()
            },
            "sha256": images.fingerprints,
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
                for phase, outcome in zip(run.phases, outcomes, strict=True)
            ],
            "epochs_run": sum(outcome.epochs for outcome in outcomes),
            "steps_run": sum(outcome.steps for outcome in outcomes),
            "images_per_second": outcomes[-1].images_per_second,
            "best_checkpoint": f"phase-{best + 1}/{outcomes[best].checkpoint}",
            "best_validation_metric": outcomes[best].metric,
            "seconds": seconds,
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
        "versions": list_versions(),
        "git_commit": find_commit(),
        "hardware": describe_hardware(),
        "hashes": images.hashes,
    }


def _list_datasets(sources: Sequence[str]) -> list[str]:
    """Return the ids of the data sets that are from the Hub, `owner/name`."""
    places = [one.where for one in map(parse_source, sources) if one.kind == "hub"]
    return [place.partition("@")[0].partition(":")[0] for place in places]


def _describe_phase(model: PreTrainedModel, phase: Phase, outcome: Outcome) -> dict[str, Any]:
    freeze(model, phase.trainable_layer_groups)
    learning, weights = count_trainable(model)
    return {
        "trainable_stages": phase.trainable_layer_groups,
        "learning_rate": phase.learning_rate,
        "part": phase.name,
        "share_of_weights": round(learning / weights, 5),
        **{name: value for name, value in asdict(outcome).items() if name != "log"},
    }


def _changed_arguments(arguments: XrayTrainingArguments) -> dict[str, Any]:
    """Return the arguments that differ from their defaults."""
    defaults = {field.name: field.default for field in fields(arguments)}
    return {
        name: value
        for name, value in arguments.to_dict().items()
        if name in defaults
        and isinstance(value, str | int | float | bool | list | dict)
        and value != defaults[name]
        and (value or isinstance(defaults[name], bool | int | float))
        and not (name in UNNAMED or name.startswith(("hub_", "push_")))
    }


def _describe_split(split: Dataset, data: XrayData) -> dict[str, int | float | bool]:
    """Return the sizes of a split, and its share of all images."""
    labels, patients = split["label"][:], set(split["patient"][:])
    return {
        "images": len(labels),
        "share": round(len(labels) / sum(map(len, data.values())), 4),
        "patients": len(patients),
        "patients_by_file_name": named_by_file(patients),
        **{name: labels.count(label) for label, name in enumerate(LABELS)},
    }
