"""Differences between two models, and between a group of images and all others, and their tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pneumonia_hf.statistics.intervals import Interval, bootstrap
from pneumonia_hf.statistics.metrics import METRICS, PROPORTIONS, auroc

COMPARED = (
    "auroc",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "brier_balanced",
)
PERMUTATIONS = 200


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of the errors of two models (McNemar 1947)."""

    only_first_wrong: int
    only_second_wrong: int
    p: float  # two-sided, that both err as often


def paired_differences(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    thresholds: tuple[float, float],
    resamples: Iterable[np.ndarray],
) -> dict[str, Interval]:
    """Return each of COMPARED of the first model less that of the second, on the same images.

    `first` and `second` are probabilities, [N], each with its threshold. Both score every resample
    of patients, so that what is hard about the images cancels.
    """

    def measure(rows: np.ndarray) -> list[float]:
        values = [
            [METRICS[name].function(labels[rows], of[rows], threshold) for name in COMPARED]
            for of, threshold in zip((first, second), thresholds, strict=True)
        ]
        return np.subtract(*values).tolist()

    found = bootstrap(measure, len(labels), resamples)
    return dict(zip(COMPARED, found, strict=True))


def mcnemar(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> McNemar:
    """Return McNemar's test of two models' decisions, [N] of booleans; images are independent."""
    from scipy.stats import binomtest

    wrong = [decisions != (labels == 1) for decisions in (first, second)]
    only_first, only_second = int((wrong[0] & ~wrong[1]).sum()), int((wrong[1] & ~wrong[0]).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p)


def bootstrap_p(difference: np.ndarray) -> float:
    """Return the two-sided p-value of a difference, by the deviation of its bootstrap draws.

    It allows for patients with several images, and is too small for a group without an error, in
    which no draw has one either.
    """
    from scipy.stats import norm

    deviation = np.nanstd(difference[1:])
    if not deviation:
        return 0.0 if difference[0] else 1.0
    return float(2 * norm.sf(abs(difference[0]) / deviation))


def fisher_p(
    metric: str, labels: np.ndarray, probabilities: np.ndarray, threshold: float, mask: np.ndarray
) -> float:
    """Return the two-sided p-value of Fisher's exact test that group and hits are independent."""
    from scipy.stats import fisher_exact

    hits = [PROPORTIONS[metric](labels[of], probabilities[of], threshold) for of in (mask, ~mask)]
    return float(fisher_exact([[one.sum(), len(one) - one.sum()] for one in hits]).pvalue)


def permutation_p(
    labels: np.ndarray,
    probabilities: np.ndarray,
    mask: np.ndarray,
    difference: float,
    generator: np.random.Generator,
) -> float:
    """Return the two-sided p-value that a group's AUROC is that of all other images.

    The groups are permuted within each class; the deviation of the permuted differences gives the
    p-value, since 200 permutations alone cannot give a small one.
    """
    from scipy.stats import norm

    permuted = np.empty(PERMUTATIONS)
    for number in range(PERMUTATIONS):
        drawn = mask.copy()
        for label in (0, 1):
            rows = np.flatnonzero(labels == label)
            drawn[rows] = mask[generator.permutation(rows)]
        inside, outside = (auroc(labels[of], probabilities[of], 0) for of in (drawn, ~drawn))
        permuted[number] = inside - outside
    deviation = permuted.std()
    return float(2 * norm.sf(abs(difference) / deviation)) if deviation else 1.0
