"""The operating point, log odds and probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on P(pneumonia) and the range in which resampling moves it."""

    threshold: float
    low: float  # at or above `low` and below `high` the decision is REFER
    high: float

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> OperatingPoint:
        """Return the operating point in the settings of a config.json or ensemble.json."""
        return cls(*(float(settings[key]) for key in ("threshold", "refer_low", "refer_high")))


def to_logit(probabilities: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), finite also at 0 and 1."""
    inside = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(inside / (1 - inside))


def to_probability(logits: np.ndarray | float) -> np.ndarray | float:
    """Return 1 / (1 + exp(-logit))."""
    # Below about -709 the exponential overflows; at -700 the probability is 1e-304.
    return 1 / (1 + np.exp(-np.maximum(np.asarray(logits, dtype=np.float64), -700.0)))
