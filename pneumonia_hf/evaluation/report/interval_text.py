"""Intervals as text, for reports."""

from __future__ import annotations

import math
from collections.abc import Callable

from pneumonia_hf.statistics.intervals import Interval


def to_text(interval: Interval | None) -> str:
    """Return a value with its interval, to four decimals."""
    if interval is None or math.isnan(interval.value):
        return "not defined"
    if math.isnan(interval.low):
        return f"{interval.value:.4f}"
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def to_short(interval: Interval | None) -> str:
    """Return a value with its interval, to two decimals or two digits."""
    if interval is None or math.isnan(interval.value):
        return ""
    if math.isnan(interval.low):
        return f"{interval.value:.2f}"
    numbers = (interval.value, interval.low, interval.high)
    value, low, high = (f"{one:.2f}" if abs(one) < 10 else f"{one:.2g}" for one in numbers)
    return f"{value} ({low} to {high})"


def to_slope(slope: Interval, to_words: Callable[[Interval], str] = to_text) -> str:
    """Return a calibration slope with its interval, or why there is none."""
    if math.isinf(slope.value):
        return "not defined: the log odds separate the classes"
    return to_words(slope)


def to_label(interval: Interval) -> str:
    """Return a value with its interval, to three decimals, for a figure."""
    if math.isnan(interval.low):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
