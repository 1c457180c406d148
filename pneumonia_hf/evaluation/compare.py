"""Two models on the same images: paired differences, and the cases on which they disagree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.scores import Scores
from pneumonia_hf.statistics.comparison import McNemar, mcnemar, paired_differences
from pneumonia_hf.statistics.intervals import Interval, draw_patients


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
    differences: dict[str, Interval]  # by a paired bootstrap over patients
    mcnemar: McNemar
    disagreements: tuple[Disagreement, ...]  # farthest apart first


def compare_scores(
    first: Scores,
    second: Scores,
    thresholds: tuple[float, float],
    other: str,
    resamples: int,
    seen: dict[str, int] | None = None,
) -> Comparison:
    """Return how two models differ on the same images.

    Raises:
        UserError: the scores are not of the same images.
    """
    if first.files != second.files:
        raise UserError(
            "The two models could not read the same images; remove those that are unreadable."
        )
    labels, both = first.labels, (first.probabilities, second.probabilities)
    positive = [of >= threshold for of, threshold in zip(both, thresholds, strict=True)]
    rows = np.flatnonzero(positive[0] != positive[1])
    rows = rows[np.argsort(-np.abs(both[0] - both[1])[rows], kind="stable")]
    draws = draw_patients(labels, first.patients, resamples)
    return Comparison(
        other,
        seen or {},
        paired_differences(labels, *both, thresholds, draws),
        mcnemar(labels, *positive),
        tuple(
            Disagreement(first.files[row], int(labels[row]), *(float(of[row]) for of in both))
            for row in rows
        ),
    )
