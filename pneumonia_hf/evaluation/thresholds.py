"""What other thresholds, prevalences and preferences would give: for reading, not for choosing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pneumonia_hf.evaluation.intervals import Interval, draw_patients, percentile_interval
from pneumonia_hf.evaluation.metrics import METRICS, metric_interval, sensitivity, specificity
from pneumonia_hf.inference.operating_point import to_logit, to_probability

SENSITIVITIES = (0.90, 0.95, 0.99)
PREVALENCES = (0.01, 0.05, 0.20, 0.50)
RISKS = np.round(np.arange(0.01, 1.0, 0.01), 2)  # of the decision curve


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
    resamples: int,
    seed: int = 13,
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
    draws = list(draw_patients(labels, patients, resamples, seed))
    return tuple(
        ThresholdResult(
            name,
            threshold,
            *(
                metric_interval(
                    metric,
                    labels,
                    probabilities,
                    threshold,
                    [
                        METRICS[metric].function(labels[d], probabilities[d], threshold)
                        for d in draws
                    ],
                )
                for metric in ("sensitivity", "specificity")
            ),
            usable,
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
    patients: Sequence[str],
    resamples: int,
    seed: int = 13,
) -> tuple[PredictiveValues, ...]:
    """Return the predictive values at each of PREVALENCES, with intervals over patients."""
    pairs = [
        (sensitivity(labels[d], probabilities[d], threshold),
         specificity(labels[d], probabilities[d], threshold))
        for d in draw_patients(labels, patients, resamples, seed)
    ]  # fmt: skip
    value = tuple(one(labels, probabilities, threshold) for one in (sensitivity, specificity))
    found = []
    for prevalence in PREVALENCES:
        draws = zip(*(predictive_values(*pair, prevalence) for pair in pairs), strict=True)
        values = predictive_values(*value, prevalence)
        both = map(percentile_interval, values, draws)
        found.append(PredictiveValues(prevalence, *map(_without_width, both)))
    return tuple(found)


def _without_width(interval: Interval) -> Interval:
    """Return an interval, not defined if no resample changes the value."""
    if interval.low == interval.high:
        return Interval(interval.value, math.nan, math.nan)
    return interval


def move_to_prevalence(
    probabilities: np.ndarray, prevalence: float, from_prevalence: float = 0.5
) -> np.ndarray:
    """Return the probabilities for a population with another prevalence (Saerens et al. 2002)."""
    shift = to_logit(np.float64(prevalence)) - to_logit(np.float64(from_prevalence))
    return to_probability(to_logit(probabilities) + shift)


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
