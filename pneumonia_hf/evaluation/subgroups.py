"""Subgroups by metadata, and images of other classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.evaluation.metrics import Interval, bootstrap_intervals
from pneumonia_hf.inference.predictor import Prediction, Predictor
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from datasets import Dataset

SUBGROUP_METRICS = ("auroc", "sensitivity", "specificity")


@dataclass(frozen=True)
class Subgroup:
    """What a model scored on the images with one value of a column of metadata."""

    column: str
    value: str
    normals: int
    pneumonias: int
    metrics: dict[str, Interval]  # of SUBGROUP_METRICS; empty where a class is absent


@dataclass(frozen=True)
class Others:
    """What the model says of images of neither class; they are in no metric."""

    name: str  # the folder, or the folder and a value of a column
    count: int
    called: int  # at or above the threshold
    referred: int
    median: float  # probability


def measure_subgroups(
    name: str,
    values: Sequence[str | None],
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    patients: Sequence[str],
    resamples: int,
) -> Iterator[Subgroup]:
    values = np.array([value or "not given" for value in values])
    patients = np.asarray(patients)
    for value in np.unique(values):
        rows = np.flatnonzero(values == value)
        counts = np.bincount(labels[rows], minlength=2)
        metrics = {}
        if counts.all():
            every = bootstrap_intervals(
                labels[rows], probabilities[rows], threshold, patients[rows], resamples
            )
            metrics = {metric: every[metric] for metric in SUBGROUP_METRICS}
        yield Subgroup(name, str(value), int(counts[0]), int(counts[1]), metrics)


def score_other_classes(
    predictor: Predictor, others: Sequence[OtherImage], subgroups: Sequence[str]
) -> tuple[tuple[Others, ...], tuple[tuple[str, str, float, str], ...], tuple[str, ...]]:
    """Return the summary of images of neither class, their rows, and what cannot be read."""
    predictions = list(predictor.predict_files([one.path for one in others]))
    scored = [
        (one, prediction)
        for one, prediction in zip(others, predictions, strict=True)
        if not isinstance(prediction, XrayError)
    ]
    groups: dict[str, list[Prediction]] = {}
    for one, prediction in scored:
        groups.setdefault(one.folder, []).append(prediction)
    for name in subgroups:
        for one, prediction in sorted(scored, key=lambda pair: pair[0].cells.get(name, "")):
            value = one.cells.get(name, "not given")
            groups.setdefault(f"{one.folder}, {name} {value}", []).append(prediction)
    summary = tuple(
        Others(
            name,
            len(several),
            sum(one.label == LABELS[1] for one in several),
            sum(one.decision == "REFER" for one in several),
            float(np.median([one.probability for one in several])),
        )
        for name, several in groups.items()
    )
    rows = tuple((one.file, one.folder, made.probability, made.decision) for one, made in scored)
    unread = tuple(str(one) for one in predictions if isinstance(one, XrayError))
    return summary, rows, unread


def predict_rows(
    predictor: Predictor, data: Dataset, strict: bool
) -> tuple[list[Prediction], list[int], tuple[str, ...]]:
    """Return the predictions, the rows that they are of, and why each other row has none."""
    from tqdm.auto import tqdm

    results = predictor.predict_images(open_images(data))
    results = list(tqdm(results, total=len(data), unit="image", leave=False))
    kept = [row for row, one in enumerate(results) if not isinstance(one, XrayError)]
    unreadable = tuple(str(one) for one in results if isinstance(one, XrayError))
    if unreadable and (strict or not kept):
        raise UserError(
            f"{len(unreadable)} of {len(data)} files cannot be read; mend or remove them: "
            f"{' '.join(unreadable[:3])}"
        )
    return [results[row] for row in kept], kept, unreadable
