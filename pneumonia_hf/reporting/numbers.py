"""Numbers as text: one rule for all reports, figures and cards."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pneumonia_hf.statistics.intervals import Interval

MOST_DECIMALS = 4


def to_text(interval: Interval | None, otherwise: str = "not defined") -> str:
    """Return a value with its interval; `otherwise` if it is not defined.

    As many decimals as half the width of the interval needs to show its first digit, or two if
    they are 10 to 35 (the rounding of the Particle Data Group, pdg.lbl.gov): 0.81 (0.72 to 0.90).
    At least two below 10, and at most MOST_DECIMALS. A value alone has three.
    """
    if interval is None or math.isnan(interval.value):
        return otherwise
    if math.isnan(interval.low):
        return f"{interval.value:.3f}"
    half, fewest = (interval.high - interval.low) / 2, 2 if abs(interval.value) < 10 else 0
    decimals = 3
    if half > 0:
        needed = -math.floor(math.log10(half / 3.55)) if math.isfinite(half) else 0
        decimals = min(max(needed, fewest), MOST_DECIMALS)
    value, low, high = (
        f"{number:.{decimals}f}" for number in (interval.value, interval.low, interval.high)
    )
    return f"{value} ({low} to {high})"


def read_interval(numbers: Mapping[str, float | None] | None) -> Interval | None:
    """Return the interval that a JSON file holds, in which null stands for NaN."""
    if not numbers:  # also what a template lacks
        return None
    ends = (numbers[name] for name in ("value", "low", "high"))
    return Interval(*(math.nan if end is None else end for end in ends))


def to_slope(slope: Interval) -> str:
    """Return a calibration slope with its interval, or why there is none."""
    if math.isinf(slope.value):
        return "not defined: the log odds separate the classes"
    return to_text(slope)


def to_count(count: int, noun: str) -> str:
    """Return a number of things, such as 1 image or 2 images."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def to_share(count: int, total: int) -> str:
    """Return a share in percent, such as 12.5%."""
    return f"{count / total:.1%}"
