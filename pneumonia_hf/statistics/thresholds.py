"""The operating point: how it is chosen, and what other thresholds and prevalences would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from pneumonia_hf.statistics.intervals import Interval, bootstrap, draw_patients
from pneumonia_hf.statistics.log_odds import move_to_prevalence, to_logit, to_probability
from pneumonia_hf.statistics.metrics import bootstrap_intervals, sensitivity, specificity

THRESHOLD_RESAMPLES = 500
LEAST_IMAGES = 10  # of each class, below which a hospital does not choose the threshold
RATES = ("sensitivity", "specificity")
SENSITIVITIES = (0.90, 0.95, 0.99)
PREVALENCES = (0.01, 0.05, 0.20, 0.50)
RISKS = np.round(np.arange(0.01, 1.0, 0.01), 2)  # of the decision curve


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on P(pneumonia) and the range in which resampling moves it."""

    threshold: float
    low: float  # at or above `low` and below `high` the decision is REFER
    high: float

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> OperatingPoint:
        """Return the operating point in the settings of a config.json or ensemble.json."""
        return cls(*(float(settings[key]) for key in ("threshold", "refer_low", "refer_high")))


def choose_threshold(
    labels: Sequence[int],
    probabilities: np.ndarray | Sequence[float],
    patients: Sequence[str],
    required_sensitivity: float | None = None,
    resamples: int = THRESHOLD_RESAMPLES,
    seed: int = 13,
    groups: Sequence[str] | None = None,
) -> OperatingPoint:
    """Return the operating point for these validation images.

    The threshold maximises sensitivity + specificity (Youden 1950); with copies of the images or
    several hospitals, its smallest value over the kinds of copies and the hospitals. If a model
    nearly solves the validation split, a wide gap of thresholds does so, and its edges depend on
    single images.
    So the middle of the gap, on the logit scale, is taken in each of `resamples` bootstraps of
    the patients. Their median is the threshold; the 2.5th and 97.5th percentiles are its range.

    Args:
        labels, patients: of each validation image, [N].
        probabilities: of each image, [N], or of the images and of each kind of copies, [K, N].
        required_sensitivity: if given, the threshold of each resample is lowered until at least
            this share of its pneumonias (of the plain images) reaches it, so that the range
            covers that uncertainty too, and the median until this share of all of them does.
        resamples, seed: of the bootstrap.
        groups: the hospital of each image, [N]. If at least two are measurable, the others are
            not considered, but for the required sensitivity.
    """
    labels = np.asarray(labels)
    places = np.zeros(len(labels), int)  # the number of the hospital; -1: not considered
    if groups is not None and len(names := list_measurable(labels, groups)) > 1:
        number_of = {name: number for number, name in enumerate(names)}
        places = np.array([number_of.get(one, -1) for one in np.asarray(groups).tolist()])
    kinds = to_logit(np.atleast_2d(np.asarray(probabilities, dtype=np.float64)))  # [K, N]
    logits = kinds[0]
    chosen = []
    # As labels, so that no resample lacks a class of a hospital.
    for rows in draw_patients(labels + 2 * places, patients, resamples, seed):
        logit = _youden_logit(labels[rows], kinds[:, rows], places[rows])
        if required_sensitivity is not None:
            logit = min(logit, _sensitive_logit(labels[rows], logits[rows], required_sensitivity))
        chosen.append(logit)
    low, threshold, high = np.percentile(chosen, [2.5, 50, 97.5])
    if required_sensitivity is not None:
        threshold = min(threshold, _sensitive_logit(labels, logits, required_sensitivity))
        low = min(low, threshold)
    return OperatingPoint(*(float(to_probability(x)) for x in (threshold, low, high)))


def measure_left_out(
    labels: np.ndarray,
    probabilities: np.ndarray,
    draws: Sequence[np.ndarray],
    required_sensitivity: float | None = None,
) -> dict[str, float]:
    """Return sensitivity and specificity at thresholds that were chosen without the image.

    A threshold is chosen on each resample of patients in `draws`, and judged on the patients that
    it lacks (the out-of-bag estimate of Efron 1983).
    """
    found = []
    for rows in draws:
        out = np.setdiff1d(np.arange(len(labels)), rows)
        point = choose_threshold(
            labels[rows], probabilities[rows], np.arange(len(rows)), required_sensitivity, 10
        )
        images = labels[out], probabilities[out], point.threshold
        found.append((sensitivity(*images), specificity(*images)))
    return dict(zip(RATES, np.nanmean(found, axis=0).tolist(), strict=True))


def list_measurable(labels: Sequence[int], groups: Sequence[str]) -> list[str]:
    """Return the names in `groups`, [N], that have LEAST_IMAGES of each class."""
    labels, groups = np.asarray(labels), np.asarray(groups)
    return [
        name
        for name in np.unique(groups).tolist()
        if np.bincount(labels[groups == name], minlength=2).min() >= LEAST_IMAGES
    ]


def _sensitive_logit(labels: np.ndarray, logits: np.ndarray, required: float) -> float:
    """Return the highest threshold that at least `required` of the pneumonias reach."""
    positives = np.sort(logits[labels == 1])
    misses = math.floor((1 - required) * len(positives) + 1e-9)
    # Slightly below the image that must be positive, so that rounding cannot exclude it.
    return float(positives[min(misses, len(positives) - 1)] - 1e-6)


def _youden_logit(labels: np.ndarray, kinds: np.ndarray, places: np.ndarray) -> float:
    """Return the middle of the best gap between neighbouring logits.

    `kinds` are those of all kinds of copies, [K, N]; `places` numbers of hospitals, [N].
    """
    levels = np.unique(kinds)
    if len(levels) == 1:
        return float(levels[0])
    gaps = (levels[:-1] + levels[1:]) / 2
    worst = np.inf
    for place, logits in product(np.unique(places[places >= 0]), kinds):
        missed, right = (
            np.searchsorted(np.sort(logits[inside]), gaps) / np.sum(inside)
            for inside in ((places == place) & (labels == label) for label in (1, 0))
        )
        worst = np.minimum(worst, right - missed)
    best = np.flatnonzero(worst >= worst.max() - 1e-12)
    return float(gaps[best[len(best) // 2]])


@dataclass(frozen=True)
class ThresholdResult:
    """Sensitivity and specificity at one threshold."""

    name: str
    threshold: float
    sensitivity: Interval
    specificity: Interval
    usable: bool  # whether it was chosen without this data


@dataclass(frozen=True)
class PredictiveValues:
    """The predictive values at the model's threshold in a population with another prevalence."""

    prevalence: float
    ppv: Interval  # share of pneumonias among the positives
    npv: Interval  # share of normals among the negatives


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit by threshold probability, per image (Vickers and Elkin 2006)."""

    risks: np.ndarray  # [T], the probability at which a reader would act
    model: np.ndarray  # [T], of acting where the model's probability is that high
    everyone: np.ndarray  # [T], of acting always; never acting has a net benefit of 0


def list_thresholds(
    labels: np.ndarray,
    probabilities: np.ndarray,
    own: float,
    patients: Sequence[str],
    resamples: Sequence[np.ndarray],
) -> tuple[ThresholdResult, ...]:
    """Return the results at the model's own threshold, and at thresholds found on this data.

    The latter show how far the threshold has shifted; a result at a threshold that was chosen on
    the same data is optimistically biased. Intervals are of a bootstrap over patients at the fixed
    threshold.
    """
    found = [("the model's own", own, True)]
    ill = np.sort(probabilities[labels == 1])
    for wanted in SENSITIVITIES:
        missed = int((1 - wanted) * len(ill) + 1e-9)
        found.append((f"sensitivity {wanted:.2f}", float(ill[missed]), False))
    found.append(("highest Youden index", youden_threshold(labels, probabilities), False))

    images = labels, probabilities
    return tuple(
        ThresholdResult(
            name,
            threshold,
            **bootstrap_intervals(*images, threshold, patients, resamples, RATES),
            usable=usable,
        )
        for name, threshold, usable in found
    )


def youden_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the probability at which sensitivity + specificity is highest (Youden 1950)."""
    from sklearn.metrics import roc_curve

    false_positives, true_positives, thresholds = roc_curve(labels, probabilities)
    return float(thresholds[np.argmax(true_positives - false_positives)].clip(0, 1))


def predictive_values(sensitivity: float, specificity: float, prevalence: float):
    """Return PPV and NPV by Bayes' rule; NaN where no image is positive, or negative."""
    hits, alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    missed, cleared = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    with np.errstate(invalid="ignore"):
        return (np.divide(hits, hits + alarms), np.divide(cleared, cleared + missed))


def by_prevalence(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    resamples: Sequence[np.ndarray],
) -> tuple[PredictiveValues, ...]:
    """Return the predictive values at each of PREVALENCES, with intervals over patients."""

    def measure(rows: np.ndarray) -> list[float]:
        images = labels[rows], probabilities[rows], threshold
        both = sensitivity(*images), specificity(*images)
        return np.ravel([predictive_values(*both, one) for one in PREVALENCES]).tolist()

    found = bootstrap(measure, len(labels), resamples)
    pairs = zip(PREVALENCES, found[::2], found[1::2], strict=True)
    return tuple(PredictiveValues(*one) for one in pairs)


def decision_curve(labels: np.ndarray, probabilities: np.ndarray) -> DecisionCurve:
    """Return the net benefit at each of RISKS, at this data's prevalence.

    Net benefit = TP/N - FP/N x risk / (1 - risk). The probabilities, calibrated for a prevalence
    of 50%, are first moved to that of the data.
    """
    prevalence = float(np.mean(labels))
    moved = move_to_prevalence(probabilities, prevalence)
    odds = RISKS / (1 - RISKS)
    acts = moved[None] >= RISKS[:, None]  # [T, N]
    hits = (acts & (labels == 1)).mean(axis=1)
    alarms = (acts & (labels == 0)).mean(axis=1)
    return DecisionCurve(RISKS, hits - alarms * odds, prevalence - (1 - prevalence) * odds)
