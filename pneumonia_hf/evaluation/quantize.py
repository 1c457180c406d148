"""Measure what the backend int8 needs of a model, and what it costs in accuracy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.backends import measure_ranges
from pneumonia_hf.inference.network import Network
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.inference.read_ahead import cut, read_or_fail
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.model_folder import QUANTIZATION_FILE, RUN_FILE, check_model_folder
from pneumonia_hf.statistics.metrics import auroc

if TYPE_CHECKING:
    from datasets import Dataset

IMAGES = 256  # of the training images, on which the ranges are measured
BATCH = 8
MOST_LOST = 0.002  # of AUROC on the validation images
UNFINISHED = ".quantization.json"


@dataclass(frozen=True)
class Cost:
    """What int8 changes on the validation images."""

    images: int
    auroc: float
    auroc_int8: float
    largest_change: float  # of a probability
    mean_change: float
    decisions_changed: int


def quantize(
    folder: Path,
    train: Dataset,
    validation: Dataset,
    positive_label: str | Sequence[str] = LABELS[1],
) -> Cost:
    """Write QUANTIZATION_FILE into a model folder, and return what int8 costs.

    The images are from `find_own_splits`.

    Raises:
        UserError: not a saved model; AUROC falls by MOST_LOST or more. Nothing is written then.
    """
    check_model_folder(folder)
    exact = Predictor.from_pretrained(
        folder, device="cpu", positive_label=positive_label, backend="onnx"
    )
    # First, since a missing package is found there.
    before, decisions = _score(exact, validation)
    network = exact.network
    rows = np.random.default_rng(13).permutation(len(train))[:IMAGES]
    drawn = train.select(np.sort(rows))
    images = (one for some in read_or_fail(open_images(drawn)) for one in some)
    batches = (network.pixel_values(some) for some in cut(images, BATCH) if len(some) > 1)
    unfinished, path = folder / UNFINISHED, folder / QUANTIZATION_FILE
    try:
        measure_ranges(network.model, batches, network.gate and network.gate.layer, unfinished)
        (label,) = [positive_label] if isinstance(positive_label, str) else positive_label
        int8 = Network(
            network.model, network.processor, network.name, folder, network.gate, label, "int8",
            ranges=unfinished,
        )  # fmt: skip
        after, decisions_after = _score(Predictor(int8), validation)
        labels, changes = np.asarray(validation["label"][:]), np.abs(before - after)
        cost = Cost(
            len(labels),
            auroc(labels, before, 0),
            auroc(labels, after, 0),
            float(changes.max()),
            float(changes.mean()),
            int(np.sum(decisions != decisions_after)),
        )
        if not cost.auroc - cost.auroc_int8 < MOST_LOST:  # NaN is refused too
            raise UserError(
                f"With int8 the AUROC on {cost.images} validation images falls from "
                f"{cost.auroc:.4f} to {cost.auroc_int8:.4f}, by {MOST_LOST} or more; use the "
                f"backend onnx or openvino."
            )
        shutil.copymode(folder / RUN_FILE, unfinished)  # only its owner can read it
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return cost


def _score(predictor: Predictor, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return P(pneumonia) and the decision of each image: [N]."""
    found = list(predictor.predict_images(open_images(data), refuse=False))
    return np.array([one.probability for one in found]), np.array([one.decision for one in found])
