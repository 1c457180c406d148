"""Probabilities, log odds, and the prevalence that a probability is for."""

from __future__ import annotations

import numpy as np


def to_logit(probabilities: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), finite also at 0 and 1."""
    inside = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(inside / (1 - inside))


def to_probability(logits: np.ndarray | float) -> np.ndarray | float:
    """Return 1 / (1 + exp(-logit))."""
    # Below about -709 the exponential overflows; at -700 the probability is 1e-304.
    return 1 / (1 + np.exp(-np.maximum(np.asarray(logits, dtype=np.float64), -700.0)))


def move_to_prevalence(
    probabilities: np.ndarray, prevalence: float, from_prevalence: float = 0.5
) -> np.ndarray:
    """Return the probabilities for a population with another prevalence (Saerens et al. 2002)."""
    shift = to_logit(np.float64(prevalence)) - to_logit(np.float64(from_prevalence))
    return to_probability(to_logit(probabilities) + shift)
