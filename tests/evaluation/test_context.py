"""What all sections measure from."""

import numpy as np
import pytest


def test_counts_are_at_the_threshold_and_include_referred_images(by_hand):
    assert by_hand.positive.tolist() == [False, False, True, False, False, True, True, True]
    assert by_hand.confusion == {
        "true_positive": 3, "false_negative": 2, "false_positive": 1, "true_negative": 2,
    }  # fmt: skip
    assert by_hand.prevalence == 5 / 8
    assert by_hand.metrics["accuracy"].value == pytest.approx(5 / 8)
    assert by_hand.referral.referred == 3
    # Of the five others, the third and the fourth are wrong.
    assert by_hand.referral.error_of_kept.value == pytest.approx(2 / 5)
    assert by_hand.unreadable == ("torn.png: it is torn", "x.png: it is empty")


def test_all_intervals_come_from_the_same_resamples(by_hand):
    resamples = by_hand.resamples
    assert resamples is by_hand.resamples and len(resamples) == by_hand.config.resamples
    accuracies = [np.mean(by_hand.positive[rows] == by_hand.labels[rows]) for rows in resamples]
    low, high = np.percentile(accuracies, [2.5, 97.5])
    found = by_hand.metrics["accuracy"]
    assert (found.low, found.high) == pytest.approx((low, high))
