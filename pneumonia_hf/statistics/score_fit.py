"""Whether the scores of images without labels fit a hospital whose classes are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pneumonia_hf.statistics.hospitals import CLASSES, QUANTILES

FEWEST_SCORES = 30  # below which nothing is said
SIMULATIONS = 500
MISFIT_P = 0.01
SHARES = np.linspace(0, 1, 41)  # of pneumonias, among which the best is sought
PLACES = ("below the normals", "between the classes", "above the pneumonias")


@dataclass(frozen=True)
class ScoreFit:
    """The mixture of a hospital's classes that is nearest to new scores."""

    hospital: str
    share: float  # of pneumonias
    difference: float  # the largest of the two distribution functions (Kolmogorov and Smirnov)
    p: float  # that scores of this hospital differ as much
    place: str  # of PLACES, that with the largest excess of new scores


def find_score_misfit(
    log_odds: np.ndarray, hospitals: Mapping[str, Mapping[str, Any]], seed: int = 13
) -> ScoreFit | None:
    """Return the fit to the nearest hospital if the scores fit none, or None if they fit one.

    The p-value is simulated: as many scores are drawn from the best mixture, and the hospital's
    images are drawn anew. Images count as independent: of a few patients with many images it is too
    small.

    Args:
        log_odds: of the new images, [N].
        hospitals: as of `measure_hospitals`; those without `log_odds` are not considered.
        seed: of the simulation.
    """
    known = {name: one for name, one in hospitals.items() if one.get("log_odds")}
    if len(log_odds) < FEWEST_SCORES or not known:
        return None
    fits = [_fit(name, np.sort(log_odds), one, seed) for name, one in known.items()]
    best = max(fits, key=lambda fit: (fit.p, -fit.difference))
    return best if best.p < MISFIT_P else None


def _fit(name: str, log_odds: np.ndarray, hospital: Mapping[str, Any], seed: int) -> ScoreFit:
    generator = np.random.default_rng(seed)
    classes = [np.asarray(hospital["log_odds"][kind]) for kind in CLASSES]  # quantiles
    difference, share = _nearest_mixture(log_odds, classes)
    at_least = 1
    for _ in range(SIMULATIONS):
        ill = generator.random(len(log_odds)) < share
        drawn = generator.random(len(log_odds))
        new = np.where(ill, *(np.interp(drawn, QUANTILES, one) for one in classes[::-1]))
        again = [
            np.quantile(np.interp(generator.random(hospital[kind]), QUANTILES, one), QUANTILES)
            for kind, one in zip(CLASSES, classes, strict=True)
        ]
        at_least += _nearest_mixture(np.sort(new), again)[0] >= difference
    medians = np.sort([np.median(one) for one in classes])
    below = np.array([np.interp(medians, one, QUANTILES) for one in classes])
    expected = np.diff((1 - share) * below[0] + share * below[1], prepend=0, append=1)
    found = np.bincount(np.searchsorted(medians, log_odds), minlength=3) / len(log_odds)
    place = PLACES[int(np.argmax(found - expected))]
    return ScoreFit(name, share, difference, float(at_least / (SIMULATIONS + 1)), place)


def _nearest_mixture(scores: np.ndarray, classes: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the smallest largest difference of sorted `scores` from a mixture, and its share."""
    well, ill = (np.interp(scores, one, QUANTILES) for one in classes)
    mixed = well + SHARES[:, None] * (ill - well)  # [shares, N]
    steps = np.arange(len(scores) + 1) / len(scores)
    gaps = np.maximum(steps[1:] - mixed, mixed - steps[:-1]).max(axis=1)
    best = int(np.argmin(gaps))
    return float(gaps[best]), float(SHARES[best])
