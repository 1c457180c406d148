"""How many of the test images with about the same score showed pneumonia."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pneumonia_hf.statistics.intervals import Interval
from pneumonia_hf.statistics.log_odds import move_to_prevalence, to_logit


class ScoredAlike:
    """The share of pneumonias by score on one data set, which never falls with a rising score."""

    def __init__(self, bins: Sequence[Mapping[str, Any]], prevalence: float) -> None:
        """Take the bins of a report, as of `list_bins`, and the prevalence of its data."""
        from scipy.optimize import isotonic_regression

        bins = sorted(bins, key=lambda one: one["mean_probability"])
        columns = ("mean_probability", "share", "low", "high", "images")
        rows = [[one[name] for name in columns] for one in bins]
        at, shares, low, high, images = np.array(rows, np.float64).T
        self.prevalence = prevalence
        self.log_odds = to_logit(move_to_prevalence(at, 0.5, prevalence))
        self.shares = isotonic_regression(shares, weights=images).x
        # Where shares do not fall, the bound of a bin holds for those on its side.
        self.low = np.minimum(np.maximum.accumulate(low), self.shares)
        self.high = np.maximum(np.minimum.accumulate(high[::-1])[::-1], self.shares)

    def find(self, probability: float, prevalence: float) -> Interval:
        """Return the share among images with a score, if `prevalence` of all showed pneumonia.

        Between two bins the interval goes from the lower bound of one to the upper bound of the
        other, since nothing was measured there.
        """
        score = float(to_logit(np.float64(probability)))
        # The score of a bin itself is on both sides, whatever its rounding.
        below = int(np.searchsorted(self.log_odds, score + 1e-9)) - 1
        above = int(np.searchsorted(self.log_odds, score - 1e-9))
        value = np.interp(score, self.log_odds, self.shares)
        low = self.low[below] if below >= 0 else 0.0
        high = self.high[above] if above < len(self.high) else 1.0
        moved = (move_to_prevalence(one, prevalence, self.prevalence) for one in (value, low, high))
        return Interval(*map(float, moved))


def read_reports(reports: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], ScoredAlike]]:
    """Return the reports that hold bins of both classes, and their shares by score."""
    return [
        (one, ScoredAlike(bins, one["prevalence"]))
        for one in reports
        if (bins := (one.get("calibration") or {}).get("bins")) and 0 < one["prevalence"] < 1
    ]
