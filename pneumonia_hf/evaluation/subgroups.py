"""Scores by row, by subgroup of metadata, and of images of other classes."""

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
    """The metrics on the images with one value of a metadata column."""

    column: str
    value: str
    normals: int
    pneumonias: int
    metrics: dict[str, Interval]  # of SUBGROUP_METRICS; empty if a class is absent


@dataclass(frozen=True)
class Others:
    """The predictions for images of neither class, which are in no metric."""

    name: str  # the folder, or the folder and a value of a column
    count: int
    called: int  # at or above the threshold
    referred: int
    median: float  # probability


def predict_rows(
    predictor: Predictor, data: Dataset, strict: bool
) -> tuple[list[Prediction], Dataset, tuple[str, ...]]:
    """Return the predictions, the rows that could be read, and the reasons for the others."""
    from tqdm.auto import tqdm

    results = predictor.predict_images(open_images(data), refuse=False)
    results = list(tqdm(results, total=len(data), unit="image", leave=False))
    kept = [row for row, one in enumerate(results) if not isinstance(one, XrayError)]
    unreadable = tuple(str(one) for one in results if isinstance(one, XrayError))
    if unreadable and (strict or not kept):
        raise UserError(
            f"{len(unreadable)} of {len(data)} files cannot be read; repair or remove them: "
            f"{' '.join(unreadable[:3])}"
        )
    rows = data.select(kept) if unreadable else data
    return [results[row] for row in kept], rows, unreadable


def measure_subgroups(
    name: str,
    values: Sequence[str | None],
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    patients: Sequence[str],
    resamples: int,
) -> Iterator[Subgroup]:
    """Yield the metrics of each value of the metadata column `name`; `values` are its cells."""
    values = np.array([value or "not given" for value in values])
    patients = np.asarray(patients)
    for value in np.unique(values):
        rows = np.flatnonzero(values == value)
        counts = np.bincount(labels[rows], minlength=2)
        metrics = {}
        if counts.all():
            metrics = bootstrap_intervals(
                labels[rows], probabilities[rows], threshold, patients[rows], resamples
            )
            metrics = {metric: metrics[metric] for metric in SUBGROUP_METRICS}
        yield Subgroup(name, str(value), int(counts[0]), int(counts[1]), metrics)


def score_other_classes(
    predictor: Predictor, others: Sequence[OtherImage], subgroups: Sequence[str]
) -> tuple[tuple[Others, ...], tuple[tuple[str, str, float, str], ...], tuple[str, ...]]:
    """Return the summary of images of neither class, their rows, and what cannot be read."""
    predictions = list(predictor.predict_files([one.path for one in others], refuse=False))
    unreadable = tuple(str(one) for one in predictions if isinstance(one, XrayError))
    scored = [
        (image, prediction)
        for image, prediction in zip(others, predictions, strict=True)
        if not isinstance(prediction, XrayError)
    ]
    groups: dict[str, list[Prediction]] = {}
    for image, prediction in scored:
        groups.setdefault(image.folder, []).append(prediction)
    for name in subgroups:
        for image, prediction in sorted(scored, key=lambda pair: pair[0].cells.get(name, "")):
            group = f"{image.folder}, {name} {image.cells.get(name, 'not given')}"
            groups.setdefault(group, []).append(prediction)
    summary = tuple(
        Others(
            name,
            len(members),
            sum(one.label == LABELS[1] for one in members),
            sum(one.decision == "REFER" for one in members),
            float(np.median([one.probability for one in members])),
        )
        for name, members in groups.items()
    )
    rows = tuple((one.file, one.folder, found.probability, found.decision) for one, found in scored)
    return summary, rows, unreadable
