"""Knowing when not to answer: risk by coverage, and what each reason to refer buys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pneumonia_hf.statistics.intervals import Interval, bootstrap, mean
from pneumonia_hf.statistics.log_odds import to_logit


@dataclass(frozen=True)
class RiskCoverage:
    """The error of the surest images, by how many are kept."""

    coverage: np.ndarray  # [N], share of the images kept, from 1/N to 1
    risk: np.ndarray  # [N], share of the kept on the wrong side of the threshold
    aurc: Interval  # the mean risk over all coverages (Geifman and El-Yaniv 2017); 0 is ideal
    excess: float  # AURC less that of an order in which all errors come last


@dataclass(frozen=True)
class Referral:
    """How many images are referred, and how that changes the error on the others."""

    referred: int
    error: Interval  # share of all images on the wrong side of the threshold
    error_of_kept: Interval  # the same of the images that are not referred
    error_of_referred: float  # NaN if no image is referred
    sensitivity_of_kept: Interval
    specificity_of_kept: Interval


@dataclass(frozen=True)
class ReferralReason:
    """The images that one reason refers."""

    reason: str
    images: int
    error: float  # of these images; NaN if there are none
    error_without: float  # of all other images


def risk_coverage(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    resamples: Iterable[np.ndarray],
) -> RiskCoverage:
    """Return the risk-coverage curve; an image is the surer, the farther from the threshold.

    The distance is that of the log odds. Images as sure as each other count with their mean error.
    """
    wrong = (probabilities >= threshold) != (labels == 1)
    sure = np.abs(to_logit(probabilities) - to_logit(np.float64(threshold)))
    (area,) = bootstrap(
        lambda rows: [_risks(wrong[rows], sure[rows]).mean()], len(labels), resamples
    )
    risks = _risks(wrong, sure)
    best = np.cumsum(np.sort(wrong)) / np.arange(1, len(wrong) + 1)  # all errors come last
    return RiskCoverage(
        np.arange(1, len(wrong) + 1) / len(wrong),
        risks,
        area,
        float(risks.mean() - best.mean()),
    )


def _risks(wrong: np.ndarray, sure: np.ndarray) -> np.ndarray:
    order = np.argsort(-sure, kind="stable")
    _, group, sizes = np.unique(-sure[order], return_inverse=True, return_counts=True)
    mean = np.bincount(group, wrong[order]) / sizes
    return np.cumsum(mean[group]) / np.arange(1, len(wrong) + 1)


def measure_referral(
    labels: np.ndarray,
    positive: np.ndarray,
    referred: np.ndarray,
    resamples: Iterable[np.ndarray],
) -> Referral:
    """Return how referring some images changes the error on the others.

    `labels`, `positive` and `referred` are the label, the side of the threshold and who is
    referred, [N] of 0 and 1 or booleans.
    """
    ill = labels == 1
    wrong, kept = positive != ill, ~referred

    def measure(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        shown = rows[kept[rows]]
        error = wrong[shown]
        return wrong[rows], error, ~error[ill[shown]], ~error[~ill[shown]]

    error, of_kept, *rest = bootstrap(measure, len(labels), resamples)
    return Referral(int(referred.sum()), error, of_kept, mean(wrong[referred]), *rest)


def split_by_reason(
    labels: np.ndarray, positive: np.ndarray, reasons: Mapping[str, np.ndarray]
) -> tuple[ReferralReason, ...]:
    """Return what each reason to refer buys; `reasons` are masks, [N] each, and may overlap."""
    wrong = positive != (labels == 1)
    return tuple(
        ReferralReason(name, int(mask.sum()), mean(wrong[mask]), mean(wrong[~mask]))
        for name, mask in reasons.items()
    )
