"""Referred images beside the error on the others."""

import pytest

from pneumonia_hf.evaluation.sections.referral import POINTS, measure


def test_referral_by_the_range_alone_stands_beside_referral_for_all_reasons(by_hand):
    section = measure(by_hand, {})
    every, alone = (section.numbers[name] for name in ("referral", "referral_by_threshold"))
    assert (every["referred"], alone["referred"]) == (3, 2)
    assert every["error_of_kept"]["value"] == pytest.approx(2 / 5)
    assert alone["error_of_kept"]["value"] == pytest.approx(2 / 6)
    assert [row[1] for row in section.body[0].rows] == [8, 6, 5, 3]
    assert [one["images"] for one in section.numbers["referral_reasons"]] == [2, 1]


def test_risk_is_given_at_each_share_of_answered_images(by_hand):
    found = measure(by_hand, {}).numbers["risk_coverage"]
    assert found["coverage"] == POINTS.tolist() and found["coverage"][-1] == 1
    assert found["risk"][-1] == pytest.approx(3 / 8)
    assert found["risk"][0] == 0  # the surest two are right


def test_a_reason_that_refers_no_more_errors_than_the_rest_has_is_named(by_hand):
    """The gate refers one image, which is right; the range two, of which one is wrong."""
    (text,) = (one for one in measure(by_hand, {}).body if "does not lower" in str(one))
    assert text.endswith(": gate (error 0.000 of 1, 0.429 of the rest).")
