"""Metrics of P(pneumonia) against the labels, and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pneumonia_hf.inference.operating_point import to_logit, to_probability

Labels = np.ndarray  # [N] of 0 (NORMAL) and 1 (PNEUMONIA)
Probabilities = np.ndarray  # [N], P(pneumonia) in 0..1


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95% confidence interval; NaN if it is not defined."""

    value: float
    low: float
    high: float


def accuracy(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of images on the right side of the threshold."""
    return float(np.mean((probabilities >= threshold) == (labels == 1)))


def sensitivity(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of pneumonias that are positive (recall, true positive rate)."""
    return _share(probabilities[labels == 1] >= threshold)


def specificity(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of normals that are negative (true negative rate)."""
    return _share(probabilities[labels == 0] < threshold)


def precision(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of pneumonias among the positives; it depends on the prevalence."""
    return _share(labels[probabilities >= threshold] == 1)


def f1(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the harmonic mean of precision and sensitivity."""
    positive = probabilities >= threshold
    wrong = np.sum(positive != (labels == 1))
    hits = np.sum(positive & (labels == 1))
    return float(2 * hits / (2 * hits + wrong)) if hits + wrong else math.nan


def auroc(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the area under the ROC curve, without a threshold; NaN if a class is absent.

    By ranks (Mann and Whitney 1947), ties counting a half. scikit-learn's function gives the same
    value, but most of its time is the checking of arguments, 1000 times in a bootstrap.
    """
    from scipy.stats import rankdata

    ill, count = np.sum(labels == 1), len(labels)
    if ill in (0, count):
        return math.nan
    above = np.sum(rankdata(probabilities)[labels == 1]) - ill * (ill + 1) / 2
    return float(above / (ill * (count - ill)))


def auprc(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the average precision, the area under the precision-recall curve; NaN without any."""
    order = np.argsort(-probabilities)
    hits = np.cumsum(labels[order] == 1)
    if not len(hits) or not hits[-1]:
        return math.nan
    last = np.append(np.flatnonzero(np.diff(probabilities[order])), len(hits) - 1)  # of each tie
    return float(np.sum(np.diff(hits[last], prepend=0) * hits[last] / (last + 1)) / hits[-1])


def brier(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the mean squared distance of the probability from the truth (Brier 1950)."""
    return float(np.mean((probabilities - labels) ** 2))


def calibration_error(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the expected calibration error over 10 bins of equal width (Guo et al. 2017).

    It is the mean distance between a bin's share of pneumonias and its mean probability, weighted
    by the bin's size.
    """
    return _calibration_gap(labels, probabilities, np.ones(len(labels)))


def balanced_brier(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the Brier score with each class weighing a half; NaN if a class is absent.

    It is the score in a population in which half have pneumonia, for which our probabilities are
    calibrated.
    """
    weights = _balance(labels)
    if weights is None:
        return math.nan
    return float(np.average((probabilities - labels) ** 2, weights=weights))


def balanced_calibration_error(
    labels: Labels, probabilities: Probabilities, threshold: float
) -> float:
    """Return the calibration error with each class weighing a half; NaN if a class is absent."""
    weights = _balance(labels)
    return math.nan if weights is None else _calibration_gap(labels, probabilities, weights)


def _calibration_gap(labels: Labels, probabilities: Probabilities, weights: np.ndarray) -> float:
    bins = np.minimum((probabilities * 10).astype(int), 9)
    gaps = np.abs(np.bincount(bins, weights * (labels - probabilities), minlength=10))
    return float(gaps.sum() / weights.sum())


def _balance(labels: Labels) -> np.ndarray | None:
    """Return weights that give both classes a sum of a half, [N]; None if one is absent."""
    counts = np.bincount(labels, minlength=2)
    return (0.5 / counts)[labels] if counts.all() else None


def calibration_p_value(labels: Labels, probabilities: Probabilities) -> float:
    """Return the p-value of Spiegelhalter's test of calibration; NaN if a class is absent.

    Statistics in Medicine 1986, 5:421; two-sided. The probabilities, calibrated for a population
    in which half have pneumonia, are first moved to the prevalence of the data. Images count as
    independent.
    """
    from scipy.stats import norm

    prevalence = float(np.mean(labels))
    if prevalence in (0.0, 1.0):
        return math.nan
    moved = to_probability(to_logit(probabilities) + math.log(prevalence / (1 - prevalence)))
    distance = np.sum((labels - moved) * (1 - 2 * moved))
    deviation = math.sqrt(np.sum((1 - 2 * moved) ** 2 * moved * (1 - moved)))
    return float(2 * norm.sf(abs(distance) / max(deviation, 1e-12)))


@dataclass(frozen=True)
class Metric:
    """A metric of P(pneumonia) against the labels at a threshold, and its direction."""

    function: Callable[[Labels, Probabilities, float], float]
    greater_is_better: bool


METRICS = {
    "accuracy": Metric(accuracy, greater_is_better=True),
    "sensitivity": Metric(sensitivity, greater_is_better=True),
    "specificity": Metric(specificity, greater_is_better=True),
    "precision": Metric(precision, greater_is_better=True),
    "f1": Metric(f1, greater_is_better=True),
    "auroc": Metric(auroc, greater_is_better=True),
    "auprc": Metric(auprc, greater_is_better=True),
    "brier": Metric(brier, greater_is_better=False),
    "ece": Metric(calibration_error, greater_is_better=False),
    "brier_balanced": Metric(balanced_brier, greater_is_better=False),
    "ece_balanced": Metric(balanced_calibration_error, greater_is_better=False),
}


def compute_metrics(
    labels: Sequence[int], probabilities: Sequence[float], threshold: float
) -> dict[str, float]:
    """Return all METRICS at a threshold, at or above which an image is positive; NaN if undefined.

    `labels` are 0 (NORMAL) and 1 (PNEUMONIA), `probabilities` P(pneumonia) of each image, [N].
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    return {
        name: metric.function(labels, probabilities, threshold) for name, metric in METRICS.items()
    }


def bootstrap_intervals(
    labels: Sequence[int],
    probabilities: Sequence[float],
    threshold: float,
    patients: Sequence[str],
    resamples: int = 1000,
    seed: int = 13,
) -> dict[str, Interval]:
    """Return every metric with its 95% percentile bootstrap interval (Efron 1979).

    `draw_patients` resamples patients, not images, since the images of one patient are alike.
    `labels`, `probabilities` and `patients` are [N]; the threshold is fixed.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    values = compute_metrics(labels, probabilities, threshold)
    draws = [
        compute_metrics(labels[rows], probabilities[rows], threshold)
        for rows in draw_patients(labels, patients, resamples, seed)
    ]
    return {
        name: percentile_interval(value, [draw[name] for draw in draws])
        for name, value in values.items()
    }


def percentile_interval(value: float, draws: Sequence[float]) -> Interval:
    """Return a value with the 2.5th and 97.5th percentiles of its defined bootstrap draws."""
    defined = [draw for draw in draws if not math.isnan(draw)]
    low, high = np.percentile(defined, [2.5, 97.5]) if defined else (math.nan, math.nan)
    return Interval(float(value), float(low), float(high))


def draw_patients(
    labels: np.ndarray, patients: Sequence[str] | np.ndarray, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield the rows of each bootstrap resample of patients.

    A patient is drawn with all images. Patients with normals only, with pneumonias only and with
    both are separate strata, so that every resample holds both classes.
    """
    generator = np.random.default_rng(seed)
    labels = np.asarray(labels)
    _, numbers = np.unique(np.asarray(patients), return_inverse=True)
    has = np.zeros((numbers.max(initial=-1) + 1, 2), bool)
    has[numbers, labels] = True
    strata = []
    for kind in ([True, False], [False, True], [True, True]):
        rows = np.flatnonzero((has[numbers] == kind).all(axis=1))
        if len(rows):
            order = rows[np.argsort(numbers[rows], kind="stable")]
            _, starts = np.unique(numbers[order], return_index=True)
            strata.append(np.split(order, starts[1:]))
    for _ in range(resamples):
        yield np.concatenate(
            [
                groups[drawn]
                for groups in strata
                for drawn in generator.integers(len(groups), size=len(groups))
            ]
        )


def _share(hits: np.ndarray) -> float:
    return float(np.mean(hits)) if len(hits) else math.nan
