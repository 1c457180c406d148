"""Numbers as text: one rule for all reports, figures and cards."""

from __future__ import annotations

import math

from pneumonia_hf.statistics.intervals import Interval

MOST_DECIMALS = 4


def to_text(interval: Interval | None, otherwise: str = "not defined") -> str:
    """Return a value with its interval; `otherwise` if it is not defined.

    As many decimals as the width of the interval justifies: two digits of it, such as 0.81 (0.72
    to 0.90), and at most MOST_DECIMALS. A value without an interval has three.
    """
    if interval is None or math.isnan(interval.value):
        return otherwise
    if math.isnan(interval.low):
        return f"{interval.value:.3f}"
    width, decimals = interval.high - interval.low, 2
    if width == 0:
        decimals = 3
    elif math.isfinite(width):
        decimals = min(max(1 - math.floor(math.log10(width)), 0), MOST_DECIMALS)
    value, low, high = (
        f"{number:.{decimals}f}" for number in (interval.value, interval.low, interval.high)
    )
    return f"{value} ({low} to {high})"


def to_slope(slope: Interval) -> str:
    """Return a calibration slope with its interval, or why there is none."""
    if math.isinf(slope.value):
        return "not defined: the log odds separate the classes"
    return to_text(slope)


def to_share(count: int, total: int) -> str:
    """Return a share in percent, such as 12.5%."""
    return f"{count / total:.1%}"
