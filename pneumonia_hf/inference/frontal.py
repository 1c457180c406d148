"""Frontal: whether an image is a frontal chest X-ray, and what it is instead.

A linear classifier of the gate's features, fitted by `evaluation.gate_fit`. Here it is a matrix:
serving needs no scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pneumonia_hf.reasons import Reason

# The kinds of images that the classifier knows, and why each is refused.
FRONTAL = "frontal"
REFUSALS = {
    "rotated": Reason.ROTATED,
    "upside_down": Reason.UPSIDE_DOWN,
    "inverted": Reason.INVERTED,
    "side": Reason.SIDE_VIEW,
    "part": Reason.PART,
    "no_xray": Reason.NO_XRAY,
    "other_xray": Reason.NO_CHEST_XRAY,
}
KINDS = (FRONTAL, *REFUSALS)
SURE = 0.5  # share of the other kinds' probability at which one of them is named


@dataclass(frozen=True)
class Frontal:
    """A multinomial logistic regression on the gate's features."""

    weights: np.ndarray  # [F, len(KINDS)]
    # [len(KINDS)]; that of FRONTAL is moved so that at most 1 in 1,000 films of another hospital
    # have a probability below 0.5.
    bias: np.ndarray

    def log_probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the log probability of each of KINDS: [N, len(KINDS)]."""
        return normalise(features @ self.weights + self.bias)


def normalise(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax of each row."""
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def find_refusal(log_probabilities: np.ndarray) -> Reason | None:
    """Return why an image is refused, by its log probabilities of KINDS; None if it is not.

    NaN, where no network has a classifier, refuses nothing. The kind is named if the classifier is
    SURE of it.
    """
    if np.isnan(log_probabilities).any():
        return None
    shares = np.exp(normalise(log_probabilities[None])[0])  # those of several add up to less than 1
    if shares[0] >= 0.5:
        return None
    others = shares[1:] / shares[1:].sum()
    likeliest = int(others.argmax())
    return [*REFUSALS.values()][likeliest] if others[likeliest] > SURE else Reason.NO_CHEST_XRAY
