"""Whether the scores of images without labels fit a hospital whose classes are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from pneumonia_hf.statistics.hospitals import CLASSES, QUANTILES, THREE_CLASSES

FEWEST_SCORES = 30  # below which nothing is said
SIMULATIONS = 500
MISFIT_P = 0.01
MOST_SCORES = 1000  # of more, so many are drawn: the simulation takes a second of them
STEPS = {2: 40, 3: 20}  # from 0 to 1, of the shares of two or three classes that are tried
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
    if len(log_odds) > MOST_SCORES:
        log_odds = np.random.default_rng(seed).choice(log_odds, MOST_SCORES, replace=False)
    fits = [_fit(name, np.sort(log_odds), one, seed) for name, one in known.items()]
    best = max(fits, key=lambda fit: (fit.p, -fit.difference))
    return best if best.p < MISFIT_P else None


def _fit(name: str, log_odds: np.ndarray, hospital: Mapping[str, Any], seed: int) -> ScoreFit:
    generator = np.random.default_rng(seed)
    kinds = THREE_CLASSES if THREE_CLASSES[0] in hospital["log_odds"] else CLASSES
    classes = [np.asarray(hospital["log_odds"][kind]) for kind in kinds]  # quantiles
    difference, shares = _nearest_mixture(log_odds, classes)
    at_least = 1
    for _ in range(SIMULATIONS):
        drawn = generator.random(len(log_odds))
        of = generator.choice(len(kinds), len(log_odds), p=shares)
        new = np.choose(of, [np.interp(drawn, QUANTILES, one) for one in classes])
        again = [
            np.quantile(np.interp(generator.random(hospital[kind]), QUANTILES, one), QUANTILES)
            for kind, one in zip(kinds, classes, strict=True)
        ]
        at_least += _nearest_mixture(np.sort(new), again)[0] >= difference
    medians = np.sort([np.median(classes[0]), np.median(classes[-1])])
    below = np.array([np.interp(medians, one, QUANTILES) for one in classes])
    expected = np.diff(shares @ below, prepend=0, append=1)
    found = np.bincount(np.searchsorted(medians, log_odds), minlength=3) / len(log_odds)
    place = PLACES[int(np.argmax(found - expected))]
    p = float(at_least / (SIMULATIONS + 1))
    return ScoreFit(name, float(shares[-1]), difference, p, place)


def _nearest_mixture(scores: np.ndarray, classes: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the smallest largest difference of sorted `scores` from a mixture, and its shares."""
    of_classes = np.array([np.interp(scores, one, QUANTILES) for one in classes])
    shares = _list_shares(len(classes))
    mixed = shares @ of_classes  # [mixtures, N]
    reached = np.arange(len(scores) + 1) / len(scores)
    gaps = np.maximum(reached[1:] - mixed, mixed - reached[:-1]).max(axis=1)
    best = int(np.argmin(gaps))
    return float(gaps[best]), shares[best]


@cache
def _list_shares(classes: int) -> np.ndarray:
    """Return the shares of the mixtures that are tried, [mixtures, classes]."""
    steps = STEPS[classes]
    numbers = product(range(steps + 1), repeat=classes)
    return np.array([one for one in numbers if sum(one) == steps])[::-1] / steps
