"""Metrics, their confidence intervals, the decision threshold and the temperature."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

logger = logging.getLogger(__name__)

Labels = np.ndarray  # [N] of 0 (NORMAL) and 1 (PNEUMONIA)
Probabilities = np.ndarray  # [N], P(pneumonia) in 0..1


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95% confidence interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def accuracy(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the share of images decided right."""
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
    return _calibration_gap(labels, probabilities, np.ones(len(labels)))


def balanced_brier(labels: Labels, probabilities: Probabilities, threshold: float) -> float:
    """Return the Brier score with each class weighing a half; NaN if a class is absent.

    Our probabilities are calibrated for a population in which half have pneumonia: this is the
    Brier score in such a population.
    """
    weights = _balance(labels)
    if weights is None:
        return math.nan
    return float(np.average((probabilities - labels) ** 2, weights=weights))


def balanced_calibration_error(
    labels: Labels, probabilities: Probabilities, threshold: float
) -> float:
    """Return the expected calibration error with each class weighing a half.

    As `calibration_error`, in a population in which half have pneumonia; NaN if a class is absent.
    """
    weights = _balance(labels)
    return math.nan if weights is None else _calibration_gap(labels, probabilities, weights)


def _calibration_gap(labels: Labels, probabilities: Probabilities, weights: np.ndarray) -> float:
    bins = np.minimum((probabilities * 10).astype(int), 9)
    gaps = np.abs(np.bincount(bins, weights * (labels - probabilities), minlength=10))
    return float(gaps.sum() / weights.sum())


def _balance(labels: Labels) -> np.ndarray | None:
    """Return weights with which both classes sum to a half, [N]; None if one is absent."""
    counts = np.bincount(labels, minlength=2)
    return (0.5 / counts)[labels] if counts.all() else None


def calibration_p_value(labels: Labels, probabilities: Probabilities) -> float:
    """Return how likely calibrated probabilities fit the labels as badly as these do.

    Spiegelhalter's test (1986, Statistics in Medicine 5:421), two-sided. The probabilities are
    taken to be calibrated for a population in which half have pneumonia, and are moved to the
    prevalence of the data first. Images count as independent.

    Returns:
        The p-value; NaN if a class is absent.
    """
    from scipy.stats import norm

    prevalence = float(np.mean(labels))
    if prevalence in (0.0, 1.0):
        return math.nan
    moved = to_probability(to_logit(probabilities) + math.log(prevalence / (1 - prevalence)))
    distance = np.sum((labels - moved) * (1 - 2 * moved))
    deviation = math.sqrt(np.sum((1 - 2 * moved) ** 2 * moved * (1 - moved)))
    return float(2 * norm.sf(abs(distance) / max(deviation, 1e-12)))


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
    "brier_balanced": balanced_brier,
    "ece_balanced": balanced_calibration_error,
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

    Patients are drawn, not images, since the images of one patient are alike: see
    `draw_patients`.

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


def draw_patients(
    labels: np.ndarray, patients: Sequence[str], resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield the rows of each bootstrap resample of patients.

    A patient is drawn once with all images. Those with normals only, with pneumonias only and
    with both are drawn apart, so that both classes are in every resample.
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
    """Return the operating point for these validation images.

    The threshold maximises sensitivity + specificity (Youden 1950). Where a model nearly solves
    the validation split, a wide gap of thresholds does so and its edges hang on single images:
    so the middle of the gap, on the logit scale, is taken in each of `resamples` bootstraps of
    the patients, and their median is the answer; the 2.5th and 97.5th percentiles are its range.

    Args:
        labels, probabilities, patients: of each validation image, [N].
        required_sensitivity: if given, the threshold of each resample is lowered until at least
            this share of its pneumonias reaches it, so that the range allows for how uncertain
            that is; and the median until this share of all validation pneumonias does.
        resamples, seed: of the bootstrap.
    """
    labels = np.asarray(labels)
    logits = to_logit(np.asarray(probabilities, dtype=np.float64))
    chosen = []
    for rows in draw_patients(labels, patients, resamples, seed):
        logit = _youden_logit(labels[rows], logits[rows])
        if required_sensitivity is not None:
            logit = min(logit, _sensitive_logit(labels[rows], logits[rows], required_sensitivity))
        chosen.append(logit)
    low, threshold, high = np.percentile(chosen, [2.5, 50, 97.5])
    if required_sensitivity is not None:
        threshold = min(threshold, _sensitive_logit(labels, logits, required_sensitivity))
        low = min(low, threshold)
    return OperatingPoint(*(float(to_probability(x)) for x in (threshold, low, high)))


@dataclass(frozen=True)
class Temperature:
    """A temperature, and what is to be known of how it was found."""

    value: float  # logits are divided by it
    separable: bool  # the validation labels can be told by a threshold without an error
    at_bound: bool  # the search ended at the end of its range


# The range in which a temperature is sought, and the standard deviation of the prior on its
# logarithm. tests/test_metrics.py has the simulation by which the prior was chosen: it loses less
# than Platt's softened targets, and than a narrower prior.
TEMPERATURES = (0.05, 20.0)
PRIOR_SD = 1.0


def fit_temperature(labels: Sequence[int], log_odds: Sequence[float]) -> Temperature:
    """Return the temperature T that calibrates the validation log odds (Guo et al. 2017).

    Dividing the log odds by T minimises the log loss, each class weighing a half, so that
    P(pneumonia) is meant for a population in which half of the images show one. A normal prior
    on log T (mean 0, standard deviation 1) keeps T finite where the labels can be told without
    an error; there T is also not below 1, since nothing shows that the network doubts too much.

    Args:
        labels: [N].
        log_odds: logit(PNEUMONIA) - logit(NORMAL), [N].

    Returns:
        T in 0.05..20; above 1 where the network was too sure of itself. A value at the end of
        that range is logged as a warning.
    """
    from scipy.optimize import minimize_scalar

    labels, log_odds = np.asarray(labels), np.asarray(log_odds, dtype=np.float64)
    signed = np.where(labels == 1, log_odds, -log_odds)
    present = np.unique(labels)

    def loss(log_temperature: float) -> float:
        losses = np.logaddexp(0, -signed / np.exp(log_temperature))
        mean = np.mean([losses[labels == label].mean() for label in present])
        return float(len(labels) * mean + (log_temperature / PRIOR_SD) ** 2 / 2)

    low, high = np.log(TEMPERATURES)
    found = float(minimize_scalar(loss, bounds=(low, high), method="bounded").x)
    separable = len(present) < 2 or log_odds[labels == 1].min() > log_odds[labels == 0].max()
    if separable:
        found = max(found, 0.0)
    at_bound = min(found - low, high - found) < 1e-3
    if at_bound:
        logger.warning(
            "The temperature that calibrates the model is %.3g, at the end of the range that is "
            "searched: its probabilities are not to be trusted; look at the validation split.",
            math.exp(found),
        )
    return Temperature(math.exp(found), bool(separable), bool(at_bound))


def to_logit(probabilities: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), finite also at 0 and 1."""
    inside = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(inside / (1 - inside))


def to_probability(logits: np.ndarray | float) -> np.ndarray | float:
    """Return 1 / (1 + exp(-logit))."""
    # Below -700 the exponential is no number any more, and the probability is 1e-304.
    return 1 / (1 + np.exp(-np.maximum(np.asarray(logits, dtype=np.float64), -700.0)))


def _sensitive_logit(labels: np.ndarray, logits: np.ndarray, required: float) -> float:
    """Return the highest threshold that at least `required` of the pneumonias reach."""
    positives = np.sort(logits[labels == 1])
    misses = math.floor((1 - required) * len(positives) + 1e-9)
    # A little below the image that must be found, so that rounding cannot lose it.
    return float(positives[min(misses, len(positives) - 1)] - 1e-6)


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
