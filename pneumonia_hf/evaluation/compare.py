"""Two models on the same images: paired differences, and the cases on which they disagree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.intervals import (
    AurocDifference,
    Interval,
    compare_aurocs,
    draw_patients,
    percentile_interval,
)
from pneumonia_hf.evaluation.metrics import METRICS
from pneumonia_hf.evaluation.scores import Scores

COMPARED = (
    "auroc",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "brier_balanced",
)


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of the errors of two models (McNemar 1947)."""

    only_first_wrong: int
    only_second_wrong: int
    p: float  # two-sided, that both err as often


@dataclass(frozen=True)
class Disagreement:
    """An image whose side of the threshold differs between two models."""

    file: str
    label: int
    first: float  # probability
    second: float


@dataclass(frozen=True)
class Comparison:
    """The first model less the second, on the same images, each at its own threshold."""

    other: str  # name of the second model
    # How many of the images are in each split of its training run, as of `count_seen`.
    seen: dict[str, int]
    differences: dict[str, Interval]  # of COMPARED, by a paired bootstrap over patients
    delong: AurocDifference
    mcnemar: McNemar
    disagreements: tuple[Disagreement, ...]  # farthest apart first


def compare_scores(
    first: Scores,
    second: Scores,
    thresholds: tuple[float, float],
    other: str,
    resamples: int,
    seen: dict[str, int] | None = None,
    seed: int = 13,
) -> Comparison:
    """Return how two models differ on the same images.

    Both models score every resample of patients, so that what is hard about the images cancels.
    McNemar's test counts images as independent.

    Raises:
        UserError: the scores are not of the same images.
    """
    from scipy.stats import binomtest

    if first.files != second.files:
        raise UserError(
            "The two models could not read the same images; remove those that are unreadable."
        )
    labels, both = first.labels, (first.probabilities, second.probabilities)

    def differences(rows: np.ndarray) -> list[float]:
        values = [
            [METRICS[name].function(labels[rows], one[rows], threshold) for name in COMPARED]
            for one, threshold in zip(both, thresholds, strict=True)
        ]
        return np.subtract(*values).tolist()

    draws = [differences(rows) for rows in draw_patients(labels, first.patients, resamples, seed)]
    values = differences(np.arange(len(labels)))
    positive = [one >= threshold for one, threshold in zip(both, thresholds, strict=True)]
    wrong = [one != (labels == 1) for one in positive]
    only_first, only_second = int((wrong[0] & ~wrong[1]).sum()), int((wrong[1] & ~wrong[0]).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    rows = np.flatnonzero(positive[0] != positive[1])
    rows = rows[np.argsort(-np.abs(both[0] - both[1])[rows], kind="stable")]
    return Comparison(
        other,
        seen or {},
        {
            name: percentile_interval(value, of)
            for name, value, of in zip(COMPARED, values, zip(*draws, strict=True), strict=True)
        },
        compare_aurocs(labels, *both, first.patients),
        McNemar(only_first, only_second, p),
        tuple(
            Disagreement(first.files[row], int(labels[row]), *(float(one[row]) for one in both))
            for row in rows
        ),
    )
