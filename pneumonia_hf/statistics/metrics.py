"""Metrics of P(pneumonia) against the labels, and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pneumonia_hf.statistics.intervals import Interval, mean, percentile_interval

FEWEST_PATIENTS = 5  # of each class, below which an area under a curve has no interval
Labels = np.ndarray  # [N] of 0 (NORMAL) and 1 (PNEUMONIA)
Probabilities = np.ndarray  # [N], P(pneumonia) in 0..1


def accuracy(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of images on the right side of the threshold."""
    return mean(PROPORTIONS["accuracy"](labels, probabilities, threshold))


def balanced_accuracy(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the mean of sensitivity and specificity."""
    images = labels, probabilities, threshold
    return (sensitivity(*images) + specificity(*images)) / 2


def sensitivity(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of pneumonias that are positive (recall, true positive rate)."""
    return mean(PROPORTIONS["sensitivity"](labels, probabilities, threshold))


def specificity(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of normals that are negative (true negative rate)."""
    return mean(PROPORTIONS["specificity"](labels, probabilities, threshold))


def precision(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of pneumonias among the positives; it depends on the prevalence."""
    return mean(PROPORTIONS["precision"](labels, probabilities, threshold))


def npv(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of normals among the negatives; it depends on the prevalence."""
    return mean(PROPORTIONS["npv"](labels, probabilities, threshold))


def f1(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the harmonic mean of precision and sensitivity."""
    positive = probabilities >= threshold
    wrong = np.sum(positive != (labels == 1))
    hits = np.sum(positive & (labels == 1))
    return float(2 * hits / (2 * hits + wrong)) if hits + wrong else math.nan


def mcc(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the correlation of label and decision; NaN if either is constant (Matthews 1975)."""
    (right_negative, missed), (false_alarm, hit) = _count(labels, probabilities, threshold)
    sides = (right_negative + missed) * (false_alarm + hit)
    sides *= (right_negative + false_alarm) * (missed + hit)
    return (right_negative * hit - missed * false_alarm) / math.sqrt(sides) if sides else math.nan


def kappa(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the agreement of label and decision beyond chance (Cohen 1960); NaN if undefined."""
    (right_negative, missed), (false_alarm, hit) = _count(labels, probabilities, threshold)
    by_chance = (hit + false_alarm) * (false_alarm + right_negative)
    by_chance += (hit + missed) * (missed + right_negative)
    agreed = 2 * (right_negative * hit - missed * false_alarm)
    return float(agreed / by_chance) if by_chance else math.nan


def lr_positive(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the factor by which a positive decision raises the odds; infinite without an error.

    Sensitivity / (1 - specificity).
    """
    hits = sensitivity(labels, probabilities, threshold)
    return _ratio(hits, 1 - specificity(labels, probabilities, threshold))


def lr_negative(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the factor by which a negative decision lowers the odds: (1 - sens.) / spec."""
    missed = 1 - sensitivity(labels, probabilities, threshold)
    return _ratio(missed, specificity(labels, probabilities, threshold))


def auroc(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the area under the ROC curve, without a threshold; NaN if a class is absent.

    The share of pairs that are ranked right (Mann and Whitney 1947), ties counting a half. The
    functions of scikit-learn and scipy give the same value, but most of their time is the checking
    of arguments, 1000 times in a bootstrap.
    """
    ill, well = np.sort(probabilities[labels == 1]), np.sort(probabilities[labels != 1])
    if not len(ill) or not len(well):
        return math.nan
    below = np.searchsorted(well, ill, "left") + np.searchsorted(well, ill, "right")
    return float(below.sum() / 2 / (len(ill) * len(well)))


def auroc_within(labels: np.ndarray, probabilities: np.ndarray, strata: np.ndarray) -> float:
    """Return the share of pairs of one stratum that are ranked right; NaN if there are none.

    It is the mean of the AUROC of each stratum, weighted by its number of pairs.
    """
    pairs = right = 0.0
    for stratum in np.unique(strata):
        inside = strata == stratum
        ill = np.sum(labels[inside] == 1)
        count = ill * (inside.sum() - ill)
        if count:
            pairs += count
            right += count * auroc(labels[inside], probabilities[inside], 0)
    return right / pairs if pairs else math.nan


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


def log_loss(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the mean of -log of the probability of the true label, in nats."""
    return float(np.mean(log_losses(labels, probabilities)))


def balanced_log_loss(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the log loss with each class weighing a half; NaN if a class is absent."""
    return float(np.average(log_losses(labels, probabilities), weights=_balance(labels)))


def calibration_error(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the expected calibration error over up to 10 bins of equal size (Nixon et al. 2019).

    It is the mean distance between a bin's share of pneumonias and its mean probability, weighted
    by the bin's size. Bins of equal width would leave most of them nearly empty, since a good
    model's probabilities are near 0 and 1. Equal probabilities are in one bin.
    """
    return calibration_gap(labels, probabilities, np.ones(len(labels)))


def balanced_brier(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the Brier score with each class weighing a half; NaN if a class is absent.

    It is the score in a population in which half have pneumonia, for which our probabilities are
    calibrated.
    """
    return float(np.average((probabilities - labels) ** 2, weights=_balance(labels)))


def balanced_calibration_error(
    labels: Labels, probabilities: Probabilities, threshold: float
) -> float:
    """Return the calibration error with each class weighing a half; NaN if a class is absent."""
    return calibration_gap(labels, probabilities, _balance(labels))


def bin_edges(probabilities: Probabilities, weights: np.ndarray) -> np.ndarray:
    """Return the inner edges of ten bins of equal weight: [9]; a bin begins at its edge."""
    order = np.argsort(probabilities)
    weight = np.cumsum(weights[order])
    places = np.searchsorted(weight, weight[-1] * np.arange(1, 10) / 10 * (1 - 1e-12))
    # The first probability of the next bin.
    return probabilities[order][np.minimum(places + 1, len(order) - 1)]


def calibration_gap(labels: Labels, probabilities: Probabilities, weights: np.ndarray) -> float:
    """Return the calibration error of images that weigh `weights`, [N]."""
    if not len(labels):
        return math.nan
    bins = np.searchsorted(bin_edges(probabilities, weights), probabilities, side="right")
    gaps = np.abs(np.bincount(bins, weights * (labels - probabilities)))
    return float(gaps.sum() / weights.sum())


def log_losses(labels: Labels, probabilities: Probabilities) -> np.ndarray:
    """Return -log of the probability of the true label of each image, in nats: [N]."""
    of_truth = np.where(labels == 1, probabilities, 1 - probabilities)
    return -np.log(np.maximum(of_truth, np.finfo(np.float64).eps))


def _count(labels: Labels, probabilities: Probabilities, threshold: float) -> np.ndarray:
    """Return the images by decision and label: [[true -, false -], [false +, true +]]."""
    cells = 2 * (probabilities >= threshold) + (labels == 1)
    return np.bincount(cells, minlength=4).reshape(2, 2).astype(np.float64)


def _ratio(upper: float, lower: float) -> float:
    if lower:
        return upper / lower
    return math.inf if upper > 0 else math.nan


def _balance(labels: Labels) -> np.ndarray:
    """Return weights that give both classes a sum of a half, [N]; NaN if one is absent."""
    counts = np.bincount(labels, minlength=2)
    return 0.5 / counts[labels] if counts.all() else np.full(len(labels), math.nan)


@dataclass(frozen=True)
class Metric:
    """A metric of P(pneumonia) against the labels at a threshold, and its direction."""

    function: Callable[[Labels, Probabilities, float], float]
    greater_is_better: bool
    title: str  # for tables
    highest: float = 1  # the lowest is 0, or -1 for a correlation
    by_prevalence: bool = False  # whether it changes with the share of pneumonias


METRICS = {
    "accuracy": Metric(accuracy, True, "accuracy", by_prevalence=True),
    "balanced_accuracy": Metric(balanced_accuracy, True, "balanced accuracy"),
    "sensitivity": Metric(sensitivity, True, "sensitivity (recall)"),
    "specificity": Metric(specificity, True, "specificity"),
    "precision": Metric(precision, True, "PPV (precision)", by_prevalence=True),
    "npv": Metric(npv, True, "NPV", by_prevalence=True),
    "f1": Metric(f1, True, "F1", by_prevalence=True),
    "mcc": Metric(mcc, True, "Matthews correlation", by_prevalence=True),
    "kappa": Metric(kappa, True, "Cohen's kappa", by_prevalence=True),
    "lr_positive": Metric(lr_positive, True, "positive likelihood ratio", math.inf),
    "lr_negative": Metric(lr_negative, False, "negative likelihood ratio", math.inf),
    "auroc": Metric(auroc, True, "AUROC"),
    "auprc": Metric(auprc, True, "AUPRC (average precision)", by_prevalence=True),
    "brier": Metric(brier, False, "Brier score", by_prevalence=True),
    "log_loss": Metric(log_loss, False, "log loss", math.inf, by_prevalence=True),
    "ece": Metric(calibration_error, False, "calibration error (ECE)", by_prevalence=True),
    "brier_balanced": Metric(balanced_brier, False, "Brier score at 50%"),
    "log_loss_balanced": Metric(balanced_log_loss, False, "log loss at 50%", math.inf),
    "ece_balanced": Metric(balanced_calibration_error, False, "calibration error at 50%"),
}


def compute_metrics(
    labels: Sequence[int],
    probabilities: Sequence[float],
    threshold: float,
    names: Collection[str] = METRICS,
) -> dict[str, float]:
    """Return METRICS at a threshold, at or above which an image is positive; NaN if undefined.

    `labels` are 0 (NORMAL) and 1 (PNEUMONIA), `probabilities` P(pneumonia) of each image, [N].
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    return {name: METRICS[name].function(labels, probabilities, threshold) for name in names}


# Which images a proportion counts, and which of them as hits.
PROPORTIONS: dict[str, Callable[[Labels, Probabilities, float], np.ndarray]] = {
    "accuracy": lambda labels, scores, threshold: (scores >= threshold) == (labels == 1),
    "sensitivity": lambda labels, scores, threshold: scores[labels == 1] >= threshold,
    "specificity": lambda labels, scores, threshold: scores[labels == 0] < threshold,
    "precision": lambda labels, scores, threshold: labels[scores >= threshold] == 1,
    "npv": lambda labels, scores, threshold: labels[scores < threshold] == 0,
}


def metric_interval(
    name: str,
    labels: Labels,
    probabilities: Probabilities,
    threshold: float,
    draws: Sequence[float],
) -> Interval:
    """Return a metric with its interval, as of `percentile_interval`."""
    images = labels, probabilities, threshold
    hits = PROPORTIONS[name](*images) if name in PROPORTIONS else None
    return percentile_interval(METRICS[name].function(*images), draws, hits)


def has_few_patients(labels: Labels, patients: Sequence[str] | np.ndarray) -> bool:
    """Return whether a class has fewer than FEWEST_PATIENTS."""
    names = np.asarray(patients)
    return any(len(set(names[labels == label].tolist())) < FEWEST_PATIENTS for label in (0, 1))


def bootstrap_intervals(
    labels: Sequence[int],
    probabilities: Sequence[float],
    threshold: float,
    patients: Sequence[str],
    resamples: Iterable[np.ndarray],
    names: Collection[str] = METRICS,
) -> dict[str, Interval]:
    """Return metrics with their 95% bootstrap intervals (Efron 1979), as of `metric_interval`.

    `labels`, `probabilities` and `patients` are [N]; `resamples` are as of `draw_patients`; the
    threshold is fixed. The areas under curves have no interval with fewer than FEWEST_PATIENTS of
    a class.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    draws = [compute_metrics(labels[d], probabilities[d], threshold, names) for d in resamples]
    few = ("auroc", "auprc") if has_few_patients(labels, patients) else ()
    images = labels, probabilities, threshold
    return {
        name: metric_interval(name, *images, [] if name in few else [one[name] for one in draws])
        for name in names
    }
