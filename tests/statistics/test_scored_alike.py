"""How many test images with about the same score showed pneumonia."""

import json

import numpy as np
import pytest

from pneumonia_hf.models.model_folder import DEFAULT_MODEL, REPORTS_FILE
from pneumonia_hf.statistics.scored_alike import ScoredAlike, read_reports

SCORES = np.linspace(0.001, 0.999, 400)


def make_bin(probability: float, share: float, low: float, high: float, images: int = 50) -> dict:
    return {"mean_probability": probability, "share": share, "low": low, "high": high,
            "images": images}  # fmt: skip


def test_share_and_interval_never_fall_with_a_rising_score():
    # Three bins of which the middle one is lower than the first.
    bins = [
        make_bin(0.2, 0.3, 0.2, 0.45, images=150),
        make_bin(0.5, 0.1, 0.05, 0.2),
        make_bin(0.9, 0.9, 0.8, 1),
    ]
    found = [ScoredAlike(bins, 0.3).find(score, 0.5) for score in SCORES]
    for name in ("value", "low", "high"):
        assert np.diff([getattr(one, name) for one in found]).min() >= -1e-12, name
    assert all(one.low <= one.value <= one.high for one in found)
    # The first two bins are one, with the share of all their images, 0.25 at a prevalence of 30%.
    assert found[150].value == pytest.approx(0.25 * 0.7 / (0.25 * 0.7 + 0.75 * 0.3), abs=0.01)


def test_between_two_bins_the_interval_reaches_from_one_to_the_other():
    alike = ScoredAlike([make_bin(0.1, 0.1, 0.05, 0.2), make_bin(0.9, 0.9, 0.8, 0.95)], 0.5)
    middle = alike.find(0.5, 0.5)
    assert middle.value == pytest.approx(0.5)
    assert (middle.low, middle.high) == pytest.approx((0.05, 0.95))
    assert alike.find(0.1, 0.5).high == pytest.approx(0.2)
    # Where nothing was measured the interval has no end.
    assert alike.find(0.01, 0.5).low < 1e-6 and alike.find(0.99, 0.5).high > 1 - 1e-6


def test_a_share_is_moved_to_the_prevalence_that_is_assumed():
    alike = ScoredAlike([make_bin(0.75, 0.75, 0.6, 0.9)], 0.75)  # odds three times those at 50%
    assert alike.find(0.5, 0.5).value == pytest.approx(0.5)
    assert alike.find(0.5, 0.75).value == pytest.approx(0.75)


def test_reports_of_the_default_model_give_shares_that_never_fall():
    reports = json.loads((DEFAULT_MODEL / REPORTS_FILE).read_text())
    known = read_reports([{"data": "old"}, {"data": "one class", "prevalence": 1}, *reports])
    assert len(known) == len(reports) >= 1
    for _, alike in known:
        shares = [alike.find(score, 0.5).value for score in SCORES]
        assert np.diff(shares).min() >= -1e-12 and shares[0] < 0.2 < 0.8 < shares[-1]
