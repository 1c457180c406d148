"""Temperature and threshold, chosen on validation images."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pneumonia_hf.evaluation.intervals import draw_patients
from pneumonia_hf.evaluation.metrics import bootstrap_intervals
from pneumonia_hf.inference.operating_point import OperatingPoint, to_logit, to_probability

logger = logging.getLogger(__name__)

RESAMPLES = 300  # of the intervals of the validation metrics
THRESHOLD_RESAMPLES = 500
TEMPERATURES = (0.05, 20.0)  # range of the search
# Standard deviation of the prior on log T. By the simulation in tests/evaluation/test_metrics.py
# it loses less than Platt's softened targets, and than a narrower prior.
PRIOR_SD = 1.0


def choose_threshold(
    labels: Sequence[int],
    probabilities: np.ndarray | Sequence[float],
    patients: Sequence[str],
    required_sensitivity: float | None = None,
    resamples: int = THRESHOLD_RESAMPLES,
    seed: int = 13,
) -> OperatingPoint:
    """Return the operating point for these validation images.

    The threshold maximises sensitivity + specificity (Youden 1950); with copies of the images, its
    smallest value over the kinds of copies. If a model nearly solves the
    validation split, a wide gap of thresholds does so, and its edges depend on single images.
    So the middle of the gap, on the logit scale, is taken in each of `resamples` bootstraps of
    the patients. Their median is the threshold; the 2.5th and 97.5th percentiles are its range.

    Args:
        labels, patients: of each validation image, [N].
        probabilities: of each image, [N], or of the images and of each kind of copies, [K, N].
        required_sensitivity: if given, the threshold of each resample is lowered until at least
            this share of its pneumonias (of the plain images) reaches it, so that the range
            covers that uncertainty too, and the median until this share of all of them does.
        resamples, seed: of the bootstrap.
    """
    labels = np.asarray(labels)
    kinds = to_logit(np.atleast_2d(np.asarray(probabilities, dtype=np.float64)))  # [K, N]
    logits = kinds[0]
    chosen = []
    for rows in draw_patients(labels, patients, resamples, seed):
        logit = _youden_logit(labels[rows], kinds[:, rows])
        if required_sensitivity is not None:
            logit = min(logit, _sensitive_logit(labels[rows], logits[rows], required_sensitivity))
        chosen.append(logit)
    low, threshold, high = np.percentile(chosen, [2.5, 50, 97.5])
    if required_sensitivity is not None:
        threshold = min(threshold, _sensitive_logit(labels, logits, required_sensitivity))
        low = min(low, threshold)
    return OperatingPoint(*(float(to_probability(x)) for x in (threshold, low, high)))


def _sensitive_logit(labels: np.ndarray, logits: np.ndarray, required: float) -> float:
    """Return the highest threshold that at least `required` of the pneumonias reach."""
    positives = np.sort(logits[labels == 1])
    misses = math.floor((1 - required) * len(positives) + 1e-9)
    # Slightly below the image that must be positive, so that rounding cannot exclude it.
    return float(positives[min(misses, len(positives) - 1)] - 1e-6)


def _youden_logit(labels: np.ndarray, kinds: np.ndarray) -> float:
    """Return the middle of the best gap between neighbouring logits, of all kinds: [K, N]."""
    levels = np.unique(kinds)
    if len(levels) == 1:
        return float(levels[0])
    gaps = (levels[:-1] + levels[1:]) / 2
    worst = np.inf
    for logits in kinds:
        missed, right = (
            np.searchsorted(np.sort(logits[labels == label]), gaps) / np.sum(labels == label)
            for label in (1, 0)
        )
        worst = np.minimum(worst, right - missed)
    best = np.flatnonzero(worst >= worst.max() - 1e-12)
    return float(gaps[best[len(best) // 2]])


@dataclass(frozen=True)
class Temperature:
    """A temperature, and how the search for it ended."""

    value: float  # divides the logits
    separable: bool  # a threshold separates the validation labels without an error
    at_bound: bool  # the search ended at the end of its range


def fit_temperature(labels: Sequence[int], log_odds: np.ndarray | Sequence[float]) -> Temperature:
    """Return the temperature T that calibrates the validation log odds (Guo et al. 2017).

    Dividing the log odds by T minimises the log loss with each class weighing a half, so that
    P(pneumonia) holds for a population in which half of the images show one. A normal prior on
    log T (mean 0, standard deviation 1) keeps T finite if the labels are separable; then T is
    also not below 1, since no error shows that the network is underconfident. T is in 0.05..20,
    above 1 for an overconfident network; the end of that range is logged as a warning.

    Args:
        labels: of each image, [N].
        log_odds: logit(PNEUMONIA) - logit(NORMAL) of each image, [N]; or of the images and of each
            kind of copies, [K, N], which count together as much as N images.
    """
    from scipy.optimize import minimize_scalar

    labels = np.asarray(labels)
    log_odds = np.atleast_2d(np.asarray(log_odds, dtype=np.float64))
    signed = np.where(labels == 1, log_odds, -log_odds)
    present = np.unique(labels)

    def loss(log_temperature: float) -> float:
        losses = np.logaddexp(0, -signed / np.exp(log_temperature))
        mean = np.mean([losses[:, labels == label].mean() for label in present])
        return float(len(labels) * mean + (log_temperature / PRIOR_SD) ** 2 / 2)

    low, high = np.log(TEMPERATURES)
    found = float(minimize_scalar(loss, bounds=(low, high), method="bounded").x)
    separable = len(present) < 2 or (
        log_odds[:, labels == 1].min() > log_odds[:, labels == 0].max()
    )
    if separable:
        found = max(found, 0.0)
    at_bound = min(found - low, high - found) < 1e-3
    if at_bound:
        logger.warning(
            "The temperature that calibrates the model is %.3g, at the end of the range of the "
            "search; do not trust its probabilities, and check the validation split.",
            math.exp(found),
        )
    return Temperature(math.exp(found), bool(separable), bool(at_bound))


@dataclass(frozen=True)
class Calibration:
    """Temperature and operating point of a model, and its metrics on the validation images."""

    temperature: Temperature
    point: OperatingPoint
    probabilities: np.ndarray  # [N], calibrated, of the validation images
    metrics: dict[str, Any]  # of the same images at the threshold: value, low and high
    required_sensitivity: float | None

    @property
    def settings(self) -> dict[str, Any]:
        """What predictors need, as it is stored in config.json."""
        return {
            "threshold": self.point.threshold,
            "refer_low": self.point.low,
            "refer_high": self.point.high,
            "temperature": self.temperature.value,
            "calibrated_for_prevalence": 0.5,
            "required_sensitivity": self.required_sensitivity,
        }

    @property
    def remarks(self) -> dict[str, bool]:
        """How the search for the temperature ended, as it is stored in run.json."""
        return {
            "validation_is_separable": self.temperature.separable,
            "temperature_at_bound": self.temperature.at_bound,
        }


def calibrate_scores(
    labels: Sequence[int],
    log_odds: np.ndarray | Sequence[float],
    patients: Sequence[str],
    required_sensitivity: float | None = None,
    resamples: int = RESAMPLES,
    threshold_resamples: int = THRESHOLD_RESAMPLES,
) -> Calibration:
    """Return temperature and operating point for the log odds of validation images.

    `log_odds` are [N], or with kinds of copies [K, N], of which the first are the plain images:
    both follow from all kinds, the metrics from the plain images alone. `resamples` are those of
    the metrics' intervals; for the others see `choose_threshold`.
    """
    kinds = np.atleast_2d(np.asarray(log_odds, dtype=np.float64))
    temperature = fit_temperature(labels, kinds)
    probabilities = to_probability(kinds / temperature.value)
    point = choose_threshold(
        labels, probabilities, patients, required_sensitivity, threshold_resamples
    )
    plain = probabilities[0]
    metrics = bootstrap_intervals(labels, plain, point.threshold, patients, resamples)
    metrics = {name: asdict(interval) for name, interval in metrics.items()}
    return Calibration(temperature, point, plain, metrics, required_sensitivity)
