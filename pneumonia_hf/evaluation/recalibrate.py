"""Calibration of a model on its validation images, in training and afterwards."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.patients import named_by_file
from pneumonia_hf.data.sources import open_images, parse_source
from pneumonia_hf.data.table import CLASS
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.gate_fit import fit_gate
from pneumonia_hf.evaluation.perturbations import COUNTERFACTUALS, ROBUST, perturb
from pneumonia_hf.evaluation.sections.robustness import in_chunks, shrink
from pneumonia_hf.files import write_json
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.inference.attribution import measure_references
from pneumonia_hf.inference.network import CONFIG_KEY, REFERENCES_KEY
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.inference.read_ahead import read_or_fail
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.models.model_card import write_card
from pneumonia_hf.models.model_folder import RUN_FILE, check_model_folder, install_model_folder
from pneumonia_hf.models.run_manifest import read_manifest
from pneumonia_hf.statistics.calibration import (
    RESAMPLES,
    THRESHOLD_RESAMPLES,
    calibrate_scores,
)
from pneumonia_hf.statistics.metrics import auroc

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

ATTRIBUTION_IMAGES = 8
RECALIBRATED = ".recalibrated"  # folder in which a recalibrated model is assembled


def calibrate(
    predictor: Predictor,
    validation: Dataset,
    required_sensitivity: float | None = None,
    attribution_images: int = ATTRIBUTION_IMAGES,
    resamples: int = RESAMPLES,
    threshold_resamples: int = THRESHOLD_RESAMPLES,
    with_copies: bool = True,
) -> dict[str, Any]:
    """Fold the temperature into the head of `predictor`, and choose its operating point.

    The predictor, a single model whose head is changed, scores the raw validation images. The
    attribution references are measured on `attribution_images` of them. Temperature and threshold
    follow from the images and, `with_copies`, from their COUNTERFACTUALS too; the threshold is the
    best for the worst hospital. The other arguments are for `calibrate_scores`.

    Returns:
        `config`: the settings for the model's config.json; `metrics` on the same images at the
        threshold, as value, low and high; `hospitals`, as of `measure_hospitals`; `copies_auroc`,
        the AUROC of each kind of copies; `remarks` on the temperature.
    """
    import torch

    labels, patients = validation["label"][:], validation["patient"][:]
    kinds, other = score_validation(predictor, validation, with_copies)
    found = calibrate_scores(
        labels,
        kinds,
        patients,
        required_sensitivity,
        resamples,
        threshold_resamples,
        **list_hospitals(validation),
        other=None if np.isnan(other).all() else other,
    )
    # Dividing the head's weights divides the logits, so that a plain pipeline is calibrated too.
    head = head_of(predictor.network.model)
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            parameter /= found.temperature.value
    positive = found.probabilities >= found.point.threshold
    hits = np.flatnonzero(positive & (np.asarray(labels) == 1))
    drawn = np.sort(np.random.default_rng(0).permutation(hits)[:attribution_images])
    images = [read_xray(source, name) for name, source in open_images(validation.select(drawn))]
    references = measure_references(predictor, images)
    return {
        "config": found.settings | {REFERENCES_KEY: references},
        "metrics": found.metrics,
        "hospitals": found.hospitals,
        "copies_auroc": {
            f"{name} {level:g}": auroc(np.asarray(labels), one, 0)
            for (name, level), one in zip(COUNTERFACTUALS, kinds[1:], strict=False)
        },
        "remarks": found.remarks | {"attribution_images": len(images)},
    }


def list_hospitals(data: Dataset) -> dict[str, list]:
    """Return `hospitals`, `views` and `other_disease`, where the data has their columns."""
    found = {f"{name}s": data[name][:] for name in ("hospital", "view")
             if name in data.column_names}  # fmt: skip
    if CLASS in data.column_names:
        found["other_disease"] = [bool(one) and one not in LABELS for one in data[CLASS][:]]
    return found


def score_validation(
    predictor: Predictor, validation: Dataset, with_copies: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log odds of the raw images, [1, N], and those of OTHER, as of `Network.score`.

    `with_copies` both are also of COUNTERFACTUALS, [K, N], at the model's size.
    """

    def score(chunks: Iterable[Sequence[Image.Image]]) -> np.ndarray:
        found = [predictor.score(chunk) for chunk in chunks]
        return np.stack([np.concatenate([getattr(one, name) for one in found])
                         for name in ("log_odds", "other")])  # fmt: skip

    kinds = [score(read_or_fail(open_images(validation)))]
    if with_copies:
        images = (read_xray(image, name) for name, image in open_images(validation))
        pixels, labels = shrink(predictor, images), validation["label"][:]
        kinds += [score(in_chunks(perturb(pixels, labels, *one))) for one in COUNTERFACTUALS]
    log_odds, other = np.stack(kinds, axis=1)
    return log_odds, other


def find_own_splits(folder: Path, data_dir: Sequence[str]) -> tuple[Dataset, Dataset]:
    """Return a saved model's training and validation images, found in a data set by their bytes.

    Raises:
        UserError: not a saved model; some of its validation images are not in the data.
    """
    from datasets import concatenate_datasets

    check_model_folder(folder)
    manifest = read_manifest(folder)
    hashes_of, own = manifest.hashes, manifest.hashes["validation"]
    known = {parse_source(text).name for text in data_dir}
    hospitals = [one for one in manifest.hospitals if known >= set(one.split("=")[1].split(","))]
    if hospitals != manifest.hospitals:
        logger.warning(
            "%s was trained with --hospitals %s; name the sources of --data_dir so (NAME=FOLDER), "
            "or each counts as a hospital of its own.",
            folder,
            " ".join(manifest.hospitals),
        )
    data = concatenate_datasets(list(load_splits(data_dir, hospitals=hospitals).values()))
    hashes = to_hex(hash_images(data))
    if missing := len(own - set(hashes)):
        raise UserError(
            f"{missing} of the {len(own)} validation images of {folder} are not in "
            f"{', '.join(data_dir)}; set --data_dir to the model's training data."
        )
    train, validation = (
        data.select([row for row, one in enumerate(hashes) if one in wanted])
        for wanted in (hashes_of["train"], own)
    )
    return train, validation


def recalibrate(
    folder: Path,
    train: Dataset,
    validation: Dataset,
    positive_label: str | Sequence[str] = LABELS[1],
) -> dict[str, Any]:
    """Recalibrate a saved model on its validation images, and rewrite its card.

    For models of an earlier version: temperature, threshold, REFER range, attribution references
    and input gate become those that training finds now. Reports in the folder are removed, since
    they were measured at the old operating point. The images are from `find_own_splits`. Returns
    the new value of `validation` in `run.json`.
    """
    import torch

    check_model_folder(folder)
    manifest = read_manifest(folder)
    run = manifest.content
    predictor = Predictor.from_pretrained(folder, positive_label=positive_label)
    old = getattr(predictor.network.model.config, CONFIG_KEY)
    # The prior on the temperature is for the network as it was trained.
    head = head_of(predictor.network.model)
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            parameter *= old["temperature"]
    with_copies = manifest.training.metric_for_best_model == ROBUST
    required = old.get("required_sensitivity")
    new = calibrate(predictor, validation, required, with_copies=with_copies)
    setattr(predictor.network.model.config, CONFIG_KEY, new["config"])
    run["validation"] = new
    run.pop("own_threshold", None)
    by_file = named_by_file(validation["patient"][:])
    for split in run["data"]["parts"].values():  # earlier versions did not store it
        split.setdefault("patients_by_file_name", by_file)
    unfinished = folder / RECALIBRATED
    try:
        predictor.network.model.save_pretrained(unfinished)
        threshold = new["config"]["threshold"]
        gate = fit_gate(predictor.network, train, validation, threshold) or predictor.network.gate
        if gate:
            gate.save(unfinished)
        write_json(unfinished / RUN_FILE, run)
        install_model_folder(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    write_card(folder)
    return new
