"""The answer in words."""

import json

import pytest

from pneumonia_hf.models.model_folder import DEFAULT_MODEL


def test_images_scored_alike_are_counted_at_half_prevalence():
    from pneumonia_hf.demo.answers import find_scored_alike, to_percent

    bins = [
        {"images": 80, "mean_probability": 0.5, "share": 0.2, "low": 0.1, "high": 0.3},
        {"images": 90, "mean_probability": 0.9, "share": 0.9, "low": 0.8, "high": 0.95},
    ]
    report = {"data": "x", "n": 170, "prevalence": 0.75, "calibration": {"bins": bins}}
    few = report | {"data": "few", "n": 16}
    # At 75% the odds are three times those at 50%: 0.9 there is 0.75, and 0.5 is 0.25.
    found = find_scored_alike([{"data": "old"}, few, report], 0.8)
    assert (found.images, found.data) == (90, "x")
    assert found.ill == pytest.approx(75) and found.low == pytest.approx(100 * 4 / 7)
    assert find_scored_alike([report], 0.1).images == 80
    assert find_scored_alike([], 0.5) is None
    # The reports of a model folder hold what the page needs.
    own = find_scored_alike(json.loads((DEFAULT_MODEL / "reports.json").read_text()), 0.99)
    assert own.images > 50 and own.low < own.ill <= own.high
    assert [to_percent(one) for one in (0.0001, 0.052, 0.5, 0.9996)] == [
        "below 0.1%", "5.2%", "50%", "above 99.9%",
    ]  # fmt: skip
