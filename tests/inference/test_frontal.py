"""Frontal: when an image is refused, and what it is called."""

import numpy as np
import pytest

from pneumonia_hf.inference.frontal import KINDS, REFUSALS, Frontal, find_refusal
from pneumonia_hf.reasons import REFUSING, Reason


def judge(**shares: float) -> np.ndarray:
    """Return log probabilities; kinds that are not named have nearly none."""
    return np.log([shares.get(name, 1e-9) for name in KINDS])


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ({"frontal": 0.51, "rotated": 0.49}, None),
        ({"frontal": 0.49, "rotated": 0.51}, Reason.ROTATED),
        ({"frontal": 0.4, "side": 0.25, "part": 0.2, "inverted": 0.15}, Reason.NO_CHEST_XRAY),
        ({"no_xray": 1.0}, Reason.NO_XRAY),
        ({"other_xray": 1.0}, Reason.NO_CHEST_XRAY),
        ({"frontal": 5.1, "rotated": 4.9}, None),  # a mean of logarithms does not add up to 1
    ],
)
def test_an_image_is_refused_if_it_is_rather_something_else_and_named_if_that_is_one_kind(
    shares, reason
):
    assert find_refusal(judge(**shares)) is reason


def test_without_a_classifier_nothing_is_refused():
    assert find_refusal(np.full(len(KINDS), np.nan)) is None


def test_each_kind_but_the_frontal_one_has_a_reason_that_refuses():
    assert {*REFUSALS.values(), Reason.MODALITY} == REFUSING  # a file itself says the last


def test_probabilities_add_up_to_one_also_far_away():
    random = np.random.default_rng(0)
    frontal = Frontal(random.normal(size=(5, len(KINDS))), random.normal(size=len(KINDS)))
    found = frontal.log_probabilities(random.normal(size=(4, 5)) * [[1], [10], [1e3], [1e5]])
    assert np.exp(found).sum(axis=1) == pytest.approx(1)
