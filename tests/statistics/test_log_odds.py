import numpy as np
import pytest

from pneumonia_hf.statistics.log_odds import move_to_prevalence, to_logit, to_probability


def test_probability_of_any_logit_is_a_number():
    logits = np.array([-1e6, -710.0, 0.0, 710.0, 1e6])
    probabilities = to_probability(logits)
    assert np.isfinite(probabilities).all() and (np.diff(probabilities) >= 0).all()
    assert probabilities[2] == 0.5 and probabilities[-1] == 1


def test_log_odds_are_the_inverse_and_finite_at_the_ends():
    probabilities = np.array([0.001, 0.3, 0.99])
    assert to_probability(to_logit(probabilities)) == pytest.approx(probabilities)
    assert np.isfinite(to_logit(np.array([0.0, 1.0]))).all()


def test_moving_a_probability_changes_its_odds_by_the_ratio_of_the_prevalences():
    assert move_to_prevalence(np.array([0.5]), 0.1)[0] == pytest.approx(0.1)
    there = move_to_prevalence(np.array([0.3, 0.9]), 0.02)
    assert move_to_prevalence(there, 0.5, 0.02) == pytest.approx([0.3, 0.9])
