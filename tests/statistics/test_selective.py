import math

import numpy as np
import pytest

from pneumonia_hf.statistics.intervals import draw_patients
from pneumonia_hf.statistics.selective import measure_referral, risk_coverage, split_by_reason


def test_risk_and_coverage_equal_counts_by_hand():
    # From the surest: right, right, wrong, right, so the risks are 0, 0, 1/3, 1/4.
    labels = np.array([1, 0, 0, 1])
    scores = np.array([0.99, 0.02, 0.95, 0.6])
    found = risk_coverage(labels, scores, 0.5, draw_patients(labels, list("abcd"), 20))
    assert found.coverage == pytest.approx([0.25, 0.5, 0.75, 1])
    assert found.risk == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert found.aurc.value == pytest.approx((1 / 3 + 1 / 4) / 4)
    # In the best order the risks are 0, 0, 0, 1/4.
    assert found.excess == pytest.approx(1 / 3 / 4)


def test_the_surest_image_is_the_farthest_in_log_odds():
    # From a threshold of 0.1, -3.9 is 1.7 away and -0.8 1.3; of the probabilities 0.3 is farther.
    found = risk_coverage(np.zeros(2, int), np.array([0.02, 0.3]), 0.1, [np.arange(2)])
    assert found.risk == pytest.approx([0, 0.5])


def test_equally_sure_images_count_with_their_mean_error_in_any_order():
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.9, 0.9, 0.9])
    for order in ([0, 1, 2, 3], [1, 3, 0, 2]):
        found = risk_coverage(
            labels[order], scores[order], 0.5, draw_patients(labels, list("abcd"), 5)
        )
        assert found.risk == pytest.approx([0.5] * 4)


def test_a_model_without_errors_has_no_area():
    draws = [np.array([0, 1])]
    found = risk_coverage(np.array([0, 1]), np.array([0.1, 0.9]), 0.5, draws)
    assert found.aurc.value == 0 and found.excess == 0
    assert np.isnan([found.aurc.low, found.aurc.high]).all()


def test_kept_images_without_an_error_have_the_exact_interval():
    labels, positive = np.repeat([0, 1], 8), np.repeat([0, 1], 8).astype(bool)
    referred = np.arange(16) % 8 == 0  # one of each class
    found = measure_referral(labels, positive, referred, draw_patients(labels, range(16), 50))
    for interval, images in (
        (found.error, 16),
        (found.error_of_kept, 14),
        (found.sensitivity_of_kept, 7),
        (found.specificity_of_kept, 7),
    ):
        width = 1 - 0.025 ** (1 / images)  # Clopper and Pearson, no error in so many
        ends = (0, width) if interval.value == 0 else (1 - width, 1)
        assert (interval.low, interval.high) == pytest.approx(ends)


def test_each_reason_says_what_it_refers_and_what_remains():
    labels = np.array([1, 1, 0, 0])
    positive = np.array([True, False, True, False])  # the second and the third are wrong
    found = split_by_reason(
        labels, positive, {"range": np.array([0, 1, 0, 0], bool), "gate": np.zeros(4, bool)}
    )
    assert (found[0].images, found[0].error) == (1, 1)
    assert found[0].error_without == pytest.approx(1 / 3)
    assert found[1].images == 0 and np.isnan(found[1].error)


def test_referral_reports_the_error_on_kept_and_referred_images():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    positive = np.array([0, 0, 1, 1, 1, 1, 0, 1], bool)  # 3 of 8 wrong
    referred = np.array([0, 1, 0, 1, 0, 0, 1, 1], bool)
    found = measure_referral(labels, positive, referred, draw_patients(labels, range(8), 200))
    assert found.referred == 4
    assert found.error.value == 3 / 8
    assert found.error_of_kept.value == 1 / 4
    assert found.error_of_referred == 2 / 4
    assert found.error.low < 3 / 8 < found.error.high
    assert (found.sensitivity_of_kept.value, found.specificity_of_kept.value) == (1, 1 / 2)
    none = measure_referral(
        labels, positive, ~positive & positive, draw_patients(labels, range(8), 20)
    )
    assert none.error_of_kept == none.error and math.isnan(none.error_of_referred)
    assert none.sensitivity_of_kept.value == 3 / 4
