"""The run manifest, `run.json`, as other code reads it: how a model was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumonia_hf.files import read_json
from pneumonia_hf.hub import find_file
from pneumonia_hf.models.model_folder import RUN_FILE


@dataclass(frozen=True)
class Training:
    """How the model was trained; None where the file does not say."""

    seed: int | None
    metric_for_best_model: str | None
    best_validation_metric: float | None
    history: list[dict[str, Any]]  # the evaluations, in order


@dataclass(frozen=True)
class Validation:
    """The results on the validation split when the model was calibrated."""

    metrics: dict[str, dict[str, float | None]]  # value, low and high
    copies_auroc: dict[str, float]  # of each kind of counterfactual copies
    hospitals: dict[str, dict[str, Any]]  # as of `measure_hospitals`
    threshold: float | None


@dataclass(frozen=True)
class RunManifest:
    """What is read of a run manifest; empty or None where there is none."""

    content: dict[str, Any]  # of the whole file
    run_id: str | None
    backbone: str | None
    base_model: str | None
    license: str | None
    datasets: list[str]  # ids of the Hub, of the data that is from there
    hospitals: list[str]  # each NAME=SOURCE,SOURCE, as of DataConfig
    training: Training
    validation: Validation
    augmentation: dict[str, float]  # strengths, by the name of the argument
    hashes: dict[str, frozenset[str]]  # of the images, by split


def read_manifest(model: str | Path | None) -> RunManifest:
    """Return the run manifest of a model.

    Files of earlier versions lack some keys, and other projects may use the file's name: what is
    missing, or is not of its type, is None or empty.

    Args:
        model: a model folder as Path; a folder or the Hub id of a downloaded model as text; or
            None, for a model that was not loaded from a folder.

    Raises:
        UserError: the file is no JSON.
    """
    file = find_file(model, RUN_FILE) if isinstance(model, str) else model and model / RUN_FILE
    found = read_json(file, otherwise={}) if file else {}
    content = found if isinstance(found, dict) else {}
    origin, training = _section(content, "model"), _section(content, "training")
    validation, hashes = _section(content, "validation"), _section(content, "hashes")
    metric, history = training.get("metric_for_best_model"), training.get("history")
    return RunManifest(
        content=content,
        run_id=content.get("run_id"),
        backbone=origin.get("backbone"),
        base_model=origin.get("base_model"),
        license=origin.get("license"),
        datasets=_section(content, "data").get("datasets") or [],
        hospitals=_section(content, "data").get("hospitals") or [],
        training=Training(
            seed=training.get("seed"),
            metric_for_best_model=metric and str(metric).removeprefix("eval_"),
            best_validation_metric=training.get("best_validation_metric"),
            history=history if isinstance(history, list) else [],
        ),
        validation=Validation(
            metrics=_section(validation, "metrics"),
            copies_auroc=_section(validation, "copies_auroc"),
            hospitals=_section(validation, "hospitals"),
            threshold=_section(validation, "config").get("threshold"),
        ),
        augmentation=_section(content, "augmentation"),
        hashes={name: frozenset(of) for name, of in hashes.items() if isinstance(of, list)},
    )


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}
