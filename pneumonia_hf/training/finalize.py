"""The best checkpoint -> a saved model folder."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumonia_hf import __version__
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.evaluation.recalibrate import calibrate
from pneumonia_hf.files import write_json
from pneumonia_hf.inference.network import CONFIG_KEY
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.model_card import write_card
from pneumonia_hf.models.model_folder import CURVES_FILE, RUN_FILE, check_model_folder
from pneumonia_hf.training.curves import draw_curves
from pneumonia_hf.training.manifest import (
    ENDED,
    NAMED_PACKAGES,
    changed_arguments,
    describe_hardware,
    describe_origin,
    describe_split,
    describe_training,
    find_commit,
    share_of_weights,
)
from pneumonia_hf.training.recipe import Recipe

if TYPE_CHECKING:
    from pneumonia_hf.data.table import XrayData
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.phases import Outcome, Phase
    from pneumonia_hf.training.probe import Speed


def finish_model(
    folder: Path,
    data: XrayData,
    recipe: Recipe,
    arguments: XrayTrainingArguments,
    hashes: dict[str, list[str]],
    fingerprints: dict[str, str],
    phases: Sequence[Phase],
    outcomes: Sequence[Outcome],
    speed: Speed,
    progress: dict[str, Any],
) -> None:
    """Make the weights in `folder` a saved model: calibrated, described, with its card.

    Args:
        folder: weights and processor; it becomes the saved model folder.
        data: the parts; the raw images of `validation` are scored.
        recipe, arguments: what the run was told.
        hashes: of each part's images.
        fingerprints: of each part as a whole.
        phases, outcomes: what was trained, and how each ended.
        speed: the precision and memory format it was trained in.
        progress: `run_id`, `seconds`, `best_checkpoint` and the like, for the manifest.
    """
    print("Calibrating and choosing the threshold on the validation split.", flush=True)
    predictor = Predictor.from_pretrained(folder)
    model = predictor.network.model
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
                **describe_origin(recipe.model, arguments.teacher),
                "model_type": model.config.model_type,
                "parameters": model.num_parameters(),
                "image_size": predictor.network.processor.size["height"],
                "trainable_stages": recipe.model.trainable_layer_groups,
                "channels_last": recipe.model.channels_last,
                "drop_path": recipe.model.drop_path,
                "dropout": recipe.model.dropout,
            },
            "data": asdict(recipe.data)
            | {
                # Where data lies is the user's own affair.
                "data_dir": " + ".join(parse_source(one).name for one in recipe.data.data_dir),
                "cache_dir": None,
                "parts": {name: describe_split(split, data) for name, split in data.items()},
                "sha256": fingerprints,
            },
            "augmentation": asdict(recipe.augment),
            "training": describe_training(arguments, speed)
            | {
                "stages": [
                    asdict(phase)
                    | {
                        "part": phase.split,
                        "share_of_weights": share_of_weights(model, phase),
                    }
                    | {name: getattr(outcome, name) for name in ENDED}
                    for phase, outcome in zip(phases, outcomes, strict=True)
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
            "arguments": changed_arguments(arguments),
            "validation": validation,
            "versions": {"pneumonia_hf": __version__, "python": platform.python_version()}
            | {name: version(name) for name in NAMED_PACKAGES},
            "git_commit": find_commit(),
            "hardware": describe_hardware(),
            "hashes": hashes,
        },
    )
    write_card(folder)
    check_model_folder(folder)
