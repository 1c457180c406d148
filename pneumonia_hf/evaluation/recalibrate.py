"""Calibrate a model on its validation images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.patients import named_by_file
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.calibration import calibrate_scores
from pneumonia_hf.files import read_json, write_json
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.inference.attribution import REFERENCES_KEY, measure_references
from pneumonia_hf.inference.network import CONFIG_KEY
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.models.model_card import write_card
from pneumonia_hf.models.model_folder import REPORTS_FILE, RUN_FILE, check_model_folder

if TYPE_CHECKING:
    from datasets import Dataset

ATTRIBUTION_IMAGES = 8
RECALIBRATED = ".recalibrated"  # where a model is put together that is calibrated anew


def calibrate(
    predictor: Predictor,
    validation: Dataset,
    required_sensitivity: float | None = None,
    attribution_images: int = ATTRIBUTION_IMAGES,
) -> dict[str, Any]:
    """Fold the temperature into the head of `predictor`, and choose what else it needs to know.

    All comes from the raw validation images, scored by the predictor itself.

    Args:
        predictor: a single model; its head is changed.
        validation: rows with image, label and patient.
        required_sensitivity: as `choose_threshold` takes it.
        attribution_images: how many images the references of attribution maps are measured on.

    Returns:
        `config`: the settings for the model's config.json; `metrics`: what the model scores on
        the same images at its threshold, as value, low and high; `remarks` on the temperature.
    """
    import torch

    labels, patients = validation["label"][:], validation["patient"][:]
    log_odds = predictor.log_odds_of_images(open_images(validation))
    found = calibrate_scores(labels, log_odds, patients, required_sensitivity)
    # Dividing the head's weights divides the logits, so that a plain pipeline is calibrated too.
    head = head_of(predictor.network.model)
    with torch.no_grad():
        head.weight /= found.temperature.value
        head.bias /= found.temperature.value
    hits = np.flatnonzero(
        (np.asarray(labels) == 1) & (found.probabilities >= found.point.threshold)
    )
    drawn = np.sort(np.random.default_rng(0).permutation(hits)[:attribution_images])
    images = [read_xray(source, name) for name, source in open_images(validation.select(drawn))]
    references = measure_references(predictor, images)
    return {
        "config": found.settings | {REFERENCES_KEY: references},
        "metrics": found.metrics,
        "remarks": found.remarks | {"attribution_images": len(images)},
    }


def find_validation(folder: Path, data_dir: Sequence[str]) -> Dataset:
    """Return the images of a data set on which a saved model was chosen, known by their bytes.

    Raises:
        UserError: not a saved model; some of its validation images are not in the data.
    """
    from datasets import concatenate_datasets

    check_model_folder(folder)
    own = set(read_json(folder / RUN_FILE, otherwise={})["hashes"]["validation"])
    data = concatenate_datasets(list(load_splits(data_dir).values()))
    hashes = to_hex(hash_images(data))
    if missing := len(own - set(hashes)):
        raise UserError(
            f"{missing} of the {len(own)} validation images of {folder} are not in "
            f"{', '.join(data_dir)}; give --data_dir what it was trained on."
        )
    return data.select([row for row, one in enumerate(hashes) if one in own])


def recalibrate(folder: Path, validation: Dataset) -> dict[str, Any]:
    """Calibrate a saved model anew, on its own validation images, and write its card anew.

    For models that an earlier version finished: temperature, threshold, range of referral and
    references of attribution maps are found as `train` finds them now. Reports that are kept in
    the folder are removed, since their numbers were measured at the old operating point.

    Args:
        folder: a saved model folder; it is changed.
        validation: the images that the model was chosen on.

    Returns:
        What `run.json` then holds under `validation`.
    """
    import torch

    check_model_folder(folder)
    run = read_json(folder / RUN_FILE, otherwise={})
    predictor = Predictor.from_pretrained(folder)
    old = getattr(predictor.network.model.config, CONFIG_KEY)
    # As the network was trained: the prior on the temperature is about that.
    head = head_of(predictor.network.model)
    with torch.no_grad():
        head.weight *= old["temperature"]
        head.bias *= old["temperature"]
    new = calibrate(predictor, validation, old.get("required_sensitivity"))
    setattr(predictor.network.model.config, CONFIG_KEY, new["config"])
    run["validation"] = new
    by_file = named_by_file(validation["patient"][:])
    for split in run["data"]["parts"].values():  # which earlier versions did not say
        split.setdefault("patients_by_file_name", by_file)
    unfinished = folder / RECALIBRATED
    try:
        predictor.network.model.save_pretrained(unfinished)
        shutil.copymode(folder / RUN_FILE, unfinished / "model.safetensors")
        write_json(unfinished / RUN_FILE, run)
        (folder / REPORTS_FILE).unlink(missing_ok=True)
        # Without its config the folder is no model: as in `put_in_place`.
        (folder / "config.json").unlink()
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    write_card(folder)
    return new
