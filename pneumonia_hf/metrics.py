"""Metrics, their confidence intervals, the decision threshold and the temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Labels = np.ndarray  # [N] of 0 (NORMAL) and 1 (PNEUMONIA)
Probabilities = np.ndarray  # [N], P(pneumonia) in 0..1


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95% confidence interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def accuracy(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of pictures decided right."""
    return float(np.mean((probabilities >= threshold) == (labels == 1)))


def sensitivity(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of pneumonias called pneumonia (recall, true positive rate)."""
    return _share(probabilities[labels == 1] >= threshold)


def specificity(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of normals called normal (true negative rate)."""
    return _share(probabilities[labels == 0] < threshold)


def precision(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of true pneumonias among those called so; it moves with prevalence."""
    return _share(labels[probabilities >= threshold] == 1)


def f1(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the harmonic mean of precision and sensitivity."""
    called = probabilities >= threshold
    wrong = np.sum(called != (labels == 1))
    hits = np.sum(called & (labels == 1))
    return float(2 * hits / (2 * hits + wrong)) if hits + wrong else math.nan


def auroc(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the area under the ROC curve; NaN if a class is absent. No threshold is used."""
    from sklearn.metrics import roc_auc_score

    if len(np.unique(labels)) < 2:
        return math.nan
    return float(roc_auc_score(labels, probabilities))


def auprc(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the average precision, the area under the precision-recall curve."""
    from sklearn.metrics import average_precision_score

    if not np.any(labels == 1):
        return math.nan
    return float(average_precision_score(labels, probabilities))


def brier(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the mean squared distance of the probability from the truth (Brier 1950)."""
    return float(np.mean((probabilities - labels) ** 2))


def calibration_error(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the expected calibration error over 10 bins of equal width (Guo et al. 2017).

    The mean distance between the share of pneumonias and the mean probability of a bin, weighted
    by the bin's size.
    """
    bins = np.minimum((probabilities * 10).astype(int), 9)
    gaps = [abs(np.sum(labels[bins == b] - probabilities[bins == b])) for b in range(10)]
    return float(np.sum(gaps) / len(labels))


METRICS: dict[str, Callable[[Labels, Probabilities, float], float]] = {
    "accuracy": accuracy,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "precision": precision,
    "f1": f1,
    "auroc": auroc,
    "auprc": auprc,
    "brier": brier,
    "ece": calibration_error,
}


def compute_metrics(
    labels: Sequence[int], probabilities: Sequence[float], threshold: float
) -> dict[str, float]:
    """Return every one of METRICS, computed through the `evaluate` library."""
    import evaluate

    from pneumonia_hf.evaluate_metric import XrayMetric

    combined = evaluate.combine([XrayMetric(name) for name in METRICS])
    return combined.compute(
        predictions=[float(p) for p in probabilities],
        references=[int(label) for label in labels],
        threshold=threshold,
    )


def bootstrap_intervals(
    labels: Sequence[int],
    probabilities: Sequence[float],
    threshold: float,
    patients: Sequence[str],
    resamples: int = 1000,
    seed: int = 13,
) -> dict[str, Interval]:
    """Return every metric with its 95% percentile bootstrap interval (Efron 1979).

    Patients are drawn, not pictures, since the pictures of one patient are alike; normals and
    pneumonias are drawn apart, so that both are in every resample.

    Args:
        labels, probabilities, patients: of each picture, [N].
        threshold: the operating point; it is held fixed.
        resamples: number of resamples.
        seed: of the draws.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    values = compute_metrics(labels, probabilities, threshold)
    draws = {name: [] for name in METRICS}
    for rows in draw_patients(labels, patients, resamples, seed):
        for name, function in METRICS.items():
            draws[name].append(function(labels[rows], probabilities[rows], threshold))
    intervals = {}
    for name, value in values.items():
        defined = [draw for draw in draws[name] if not math.isnan(draw)]
        low, high = np.percentile(defined, [2.5, 97.5]) if defined else (math.nan, math.nan)
        intervals[name] = Interval(float(value), float(low), float(high))
    return intervals


def draw_patients(labels: np.ndarray, patients: Sequence[str], resamples: int, seed: int):
    """Yield the rows of each bootstrap resample of patients, class by class."""
    generator = np.random.default_rng(seed)
    patients = np.asarray(patients)
    classes = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = rows[np.argsort(patients[rows], kind="stable")]
        _, starts = np.unique(patients[order], return_index=True)
        classes.append(np.split(order, starts[1:]))
    for _ in range(resamples):
        yield np.concatenate(
            [
                groups[drawn]
                for groups in classes
                for drawn in generator.integers(len(groups), size=len(groups))
            ]
        )


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on P(pneumonia) and the range in which resampling moves it."""

    threshold: float
    low: float
    high: float


def choose_threshold(
    labels: Sequence[int],
    probabilities: Sequence[float],
    patients: Sequence[str],
    required_sensitivity: float | None = None,
    resamples: int = 500,
    seed: int = 13,
) -> OperatingPoint:
    """Return the operating point for these validation pictures.

    The threshold maximises sensitivity + specificity (Youden 1950). Where a model nearly solves
    the validation part, a wide gap of thresholds does so and its edges hang on single pictures:
    so the middle of the gap, on the logit scale, is taken in each of `resamples` bootstraps of
    the patients, and their median is the answer; the 2.5th and 97.5th percentiles are its range.

    Args:
        labels, probabilities, patients: of each validation picture, [N].
        required_sensitivity: if given, the threshold is lowered until at least this share of the
            validation pneumonias reaches it.
        resamples, seed: of the bootstrap.
    """
    labels = np.asarray(labels)
    logits = to_logit(np.asarray(probabilities, dtype=np.float64))
    chosen = [
        _youden_logit(labels[rows], logits[rows])
        for rows in draw_patients(labels, patients, resamples, seed)
    ]
    low, threshold, high = np.percentile(chosen, [2.5, 50, 97.5])
    if required_sensitivity is not None:
        positives = np.sort(logits[labels == 1])
        misses = math.floor((1 - required_sensitivity) * len(positives) + 1e-9)
        # A little below the picture that must be found, so that rounding cannot lose it.
        limit = positives[min(misses, len(positives) - 1)] - 1e-6
        threshold = min(threshold, limit)
        low, high = min(low, threshold), max(high, threshold)
    return OperatingPoint(*(float(to_probability(x)) for x in (threshold, low, high)))


def fit_temperature(labels: Sequence[int], margins: Sequence[float]) -> float:
    """Return the temperature T that calibrates the validation margins (Guo et al. 2017).

    Dividing both logits by T minimises the mean log loss, each class weighing a half, so that
    P(pneumonia) is meant for a population in which half of the pictures show one.

    Args:
        labels: [N].
        margins: logit(PNEUMONIA) - logit(NORMAL), [N].

    Returns:
        T in 0.05..20; above 1 where the network was too sure of itself.
    """
    from scipy.optimize import minimize_scalar

    labels, margins = np.asarray(labels), np.asarray(margins, dtype=np.float64)
    signed = np.where(labels == 1, margins, -margins)

    def loss(log_temperature: float) -> float:
        losses = np.logaddexp(0, -signed / np.exp(log_temperature))
        return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)]))

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(np.exp(found.x))


def to_logit(probabilities: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), finite also at 0 and 1."""
    inside = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(inside / (1 - inside))


def to_probability(logits: np.ndarray | float) -> np.ndarray | float:
    """Return 1 / (1 + exp(-logit))."""
    # Below -700 the exponential is no number any more, and the probability is 1e-304.
    return 1 / (1 + np.exp(-np.maximum(np.asarray(logits, dtype=np.float64), -700.0)))


def _youden_logit(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the middle of the best gap between two neighbouring logits."""
    order = np.argsort(logits)
    logits, labels = logits[order], labels[order]
    edges = np.flatnonzero(np.diff(logits) > 0)  # a threshold lies between edge and edge + 1
    if len(edges) == 0:
        return float(logits[0])
    missed = np.cumsum(labels == 1)[edges] / np.sum(labels == 1)
    spared = np.cumsum(labels == 0)[edges] / np.sum(labels == 0)
    youden = spared - missed
    best = edges[youden >= youden.max() - 1e-12]
    middle = best[len(best) // 2]
    return float((logits[middle] + logits[middle + 1]) / 2)


def _share(hits: np.ndarray) -> float:
    return float(np.mean(hits)) if len(hits) else math.nan
