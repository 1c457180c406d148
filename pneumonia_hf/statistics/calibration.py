"""Calibration of probabilities: the temperature that is fitted, and how well they fit labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pneumonia_hf.statistics.hospitals import measure_hospitals
from pneumonia_hf.statistics.intervals import Interval, bootstrap, draw_patients
from pneumonia_hf.statistics.log_odds import move_to_prevalence, to_logit, to_probability
from pneumonia_hf.statistics.metrics import (
    bin_edges,
    bootstrap_intervals,
    calibration_gap,
    log_losses,
)
from pneumonia_hf.statistics.thresholds import (
    THRESHOLD_RESAMPLES,
    OperatingPoint,
    choose_threshold,
)

logger = logging.getLogger(__name__)

RESAMPLES = 300  # of the intervals of the validation metrics
TEMPERATURES = (0.05, 20.0)  # range of the search
# Standard deviation of the prior on log T. By the simulation in
# tests/statistics/test_calibration.py it loses less than Platt's softened targets, and than a
# narrower prior.
PRIOR_SD = 1.0
SHIFTED = (0.05, 0.20)  # prevalences of which losses are computed, by weights of the classes


@dataclass(frozen=True)
class Temperature:
    """A temperature, and how the search for it ended."""

    value: float  # divides the logits
    separable: bool  # a threshold separates the validation labels without an error
    at_bound: bool  # the search ended at the end of its range


def divide_logits(log_odds: np.ndarray, other: np.ndarray | None, temperature: float) -> np.ndarray:
    """Return the log odds of pneumonia once a temperature divides all logits of a network.

    `other` are the log odds of a third class against the second, of the same shape, or None with
    two classes; the log odds of two classes are divided themselves.
    """
    divided = log_odds / temperature
    if other is None:
        return divided
    # With logits such that the log-sum-exp of those besides pneumonia is 0.
    logs = (-np.logaddexp(0, sign * other) / temperature for sign in (-1, 1))
    return divided - np.logaddexp(*logs)


def fit_temperature(
    labels: Sequence[int],
    log_odds: np.ndarray | Sequence[float],
    other: np.ndarray | None = None,
) -> Temperature:
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
        other: as of `divide_logits`.
    """
    from scipy.optimize import minimize_scalar

    labels = np.asarray(labels)
    log_odds = np.atleast_2d(np.asarray(log_odds, dtype=np.float64))
    present = np.unique(labels)

    def loss(log_temperature: float) -> float:
        divided = divide_logits(log_odds, other, np.exp(log_temperature))
        losses = np.logaddexp(0, np.where(labels == 1, -divided, divided))
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
    hospitals: dict[str, dict[str, Any]]  # as of `measure_hospitals`
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
    hospitals: Sequence[str] | None = None,
    views: Sequence[str | None] | None = None,
    other: np.ndarray | None = None,
    other_disease: Sequence[bool] | None = None,
) -> Calibration:
    """Return temperature and operating point for the log odds of validation images.

    `log_odds` are [N], or with kinds of copies [K, N], of which the first are the plain images:
    both follow from all kinds, the metrics from the plain images alone. `resamples` are those of
    the metrics' intervals; `hospitals`, `views` and `other_disease` are of each image, [N]; `other`
    is as of `divide_logits`; for the others see `choose_threshold`.
    """
    kinds = np.atleast_2d(np.asarray(log_odds, dtype=np.float64))
    temperature = fit_temperature(labels, kinds, other)
    probabilities = to_probability(divide_logits(kinds, other, temperature.value))
    point = choose_threshold(
        labels, probabilities, patients, required_sensitivity, threshold_resamples, groups=hospitals
    )
    plain = probabilities[0]
    draws = draw_patients(labels, patients, resamples)
    metrics = bootstrap_intervals(labels, plain, point.threshold, patients, draws)
    metrics = {name: asdict(interval) for name, interval in metrics.items()}
    of_hospitals = {}
    if hospitals is not None:
        of_hospitals = measure_hospitals(
            labels, plain, point.threshold, patients, hospitals, views, resamples, other_disease
        )
    return Calibration(temperature, point, plain, metrics, of_hospitals, required_sensitivity)


@dataclass(frozen=True)
class LossRow:
    """Brier score, log loss and calibration error of probabilities in one population."""

    name: str
    brier: float
    log_loss: float
    ece: float


@dataclass(frozen=True)
class CalibrationBin:
    """The images of one bin of the reliability diagram."""

    images: int
    mean_probability: float
    share: float  # of pneumonias
    low: float  # Wilson's 95% interval of the share
    high: float


@dataclass(frozen=True)
class CalibrationQuality:
    """How well calibrated a model is on one data set."""

    # Of the labels' log odds on the model's; 1 is ideal, below 1 overconfident. Infinite if there
    # is none, as of `fit_logistic`.
    slope: Interval
    intercept: Interval  # log odds by which the probabilities are too low, for 50%; 0 is ideal
    p: float  # of `calibration_p_value`
    losses: tuple[LossRow, ...]
    bins: tuple[CalibrationBin, ...]  # of equal size, of probabilities for the data's prevalence


def fit_logistic(labels: np.ndarray, logits: np.ndarray, offset: float) -> tuple[float, float]:
    """Return slope and intercept of the labels' log odds on `logits` + `offset` (Cox 1958).

    The intercept is that of a slope fixed at 1 (calibration in the large). The slope is infinite
    if the log odds separate the classes, also with ties at the border: then none fits best (Albert
    and Anderson 1984, Biometrika 71:1). It is NaN if they are all equal; both are if a class is
    absent.
    """
    if not 0 < np.sum(labels) < len(labels):
        return math.nan, math.nan
    intercept = _solve(labels, np.ones((len(labels), 1)), logits + offset)[0]
    return _fit_slope(labels, logits + offset)[0], intercept


def _fit_slope(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Return the slope of the labels' log odds on `logits`, and the largest log-likelihood."""
    from scipy.special import xlogy

    ill, well = logits[labels == 1], logits[labels == 0]
    rises, falls = well.max() <= ill.min(), ill.max() <= well.min()
    if rises or falls:
        # A steep enough slope explains every label but those of ties at the border.
        tied = labels[logits == (ill.min() if rises else ill.max())]
        best = sum(float(xlogy(n, n / len(tied))) for n in np.bincount(tied))
        return math.nan if rises and falls else math.inf if rises else -math.inf, best
    terms = np.stack([logits, np.ones(len(labels))], axis=1)
    found = _solve(labels, terms, np.zeros(len(labels)))
    return found[0], _log_likelihood(labels, terms @ found)


def _solve(labels: np.ndarray, terms: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Return the coefficients of a logistic regression by Newton's method; NaN if none is found.

    A step is halved until the likelihood does not fall: far from the solution it is too long.
    """
    # Not statsmodels' Logit: 2 s slower for 1000 resamples of 100 images, and where the classes
    # overlap in ties alone it returns a steep slope without a warning.
    from scipy.special import expit

    found, best = np.zeros(terms.shape[1]), _log_likelihood(labels, fixed)
    for _ in range(200):
        expected = expit(terms @ found + fixed)
        curvature = (terms.T * (expected * (1 - expected))) @ terms
        step = np.linalg.lstsq(curvature, terms.T @ (labels - expected))[0]
        least = best - 1e-12 * abs(best)  # the rounding of the sum
        while (best := _log_likelihood(labels, terms @ (found + step) + fixed)) < least:
            step = step / 2
        found = found + step
        if np.all(np.abs(step) <= 1e-9 * np.maximum(1, np.abs(found))):
            return found
    return np.full(terms.shape[1], math.nan)


def calibration_p_value(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the p-value that slope and intercept are 1 and 0; NaN if a class is absent.

    The likelihood-ratio test with two degrees of freedom (Cox 1958, Miller et al. 1991), of the
    probabilities moved to the data's prevalence, for images that count as independent.
    """
    from scipy.stats import chi2

    share = float(np.mean(labels))
    if share in (0, 1):
        return math.nan
    logits = to_logit(probabilities) + math.log(share / (1 - share))
    gained = _fit_slope(labels, logits)[1] - _log_likelihood(labels, logits)
    return float(chi2.sf(max(2 * gained, 0), df=2))


def _log_likelihood(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(-np.sum(np.logaddexp(0, np.where(labels == 1, -logits, logits))))


def measure_calibration(
    labels: np.ndarray, probabilities: np.ndarray, resamples: Iterable[np.ndarray]
) -> CalibrationQuality:
    """Return the calibration of probabilities that are for a prevalence of 50%.

    Slope and intercept are of the probabilities moved to the data's prevalence, so that a
    difference of prevalence alone is no miscalibration; intervals are over patients.
    """
    logits = to_logit(probabilities)

    def fit(rows: np.ndarray) -> tuple[float, float]:
        share = np.mean(labels[rows])
        if share in (0, 1):
            return math.nan, math.nan
        return fit_logistic(labels[rows], logits[rows], math.log(share / (1 - share)))

    slope, intercept = bootstrap(fit, len(labels), resamples)
    if not math.isfinite(slope.value):  # that some draws have one says nothing of this data's
        slope = Interval(slope.value)
    moved = move_to_prevalence(probabilities, float(np.mean(labels)))
    even = np.ones(len(labels))
    rows = [
        _to_row("this data, as given", labels, probabilities, even),
        _to_row("this data, moved to its prevalence", labels, moved, even),
    ]
    for prevalence in SHIFTED:
        weights = np.where(
            labels == 1, prevalence / labels.mean(), (1 - prevalence) / (1 - labels.mean())
        )
        weights /= weights.sum()
        to_it = move_to_prevalence(probabilities, prevalence)
        for name, of in (("as given", probabilities), ("moved to it", to_it)):
            rows.append(_to_row(f"prevalence {prevalence:.0%}, {name}", labels, of, weights))
    return CalibrationQuality(
        slope,
        intercept,
        calibration_p_value(labels, probabilities),
        tuple(rows),
        tuple(list_bins(labels, moved)),
    )


def _to_row(
    name: str, labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> LossRow:
    """Return the losses of images that weigh `weights`, [N]."""
    of_image = ((probabilities - labels) ** 2, log_losses(labels, probabilities))
    losses = (float(np.average(one, weights=weights)) for one in of_image)
    return LossRow(name, *losses, calibration_gap(labels, probabilities, weights))


def list_bins(labels: np.ndarray, probabilities: np.ndarray) -> list[CalibrationBin]:
    """Return bins of equal size, with Wilson's intervals of their shares of pneumonias."""
    from scipy.stats import binomtest

    numbers = np.searchsorted(
        bin_edges(probabilities, np.ones(len(labels))), probabilities, side="right"
    )
    found = []
    for inside in (numbers == number for number in np.unique(numbers)):
        ill, images = int(labels[inside].sum()), int(inside.sum())
        interval = binomtest(ill, images).proportion_ci(method="wilson")
        mean = float(probabilities[inside].mean())
        found.append(CalibrationBin(images, mean, ill / images, interval.low, interval.high))
    return found
