"""Numbers as text."""

import math

import pytest

from pneumonia_hf.reporting.numbers import to_slope, to_text
from pneumonia_hf.statistics.intervals import Interval


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.8131, 0.7234, 0.9012), "0.81 (0.72 to 0.90)"),
        (Interval(0.98012, 0.9599, 0.9949), "0.980 (0.960 to 0.995)"),
        (Interval(0.95312, 0.9021, 0.9802), "0.95 (0.90 to 0.98)"),
        (Interval(0.99402, 0.9897, 0.9972), "0.994 (0.990 to 0.997)"),
        (Interval(0.99812, 0.9974, 0.9991), "0.9981 (0.9974 to 0.9991)"),
        (Interval(0.5, 0.49999, 0.50001), "0.5000 (0.5000 to 0.5000)"),
        (Interval(24.71, 9.0, 103.0), "25 (9 to 103)"),
        (Interval(1, 1, 1), "1.000 (1.000 to 1.000)"),
        (Interval(2.5, 1.1, math.inf), "2.50 (1.10 to inf)"),
        (Interval(0.8131), "0.813"),
        (Interval(math.nan), "not defined"),
        (None, "not defined"),
    ],
)
def test_decimals_follow_the_width_of_the_interval(interval, text):
    assert to_text(interval) == text


def test_a_slope_that_does_not_exist_is_said_in_words():
    assert "separate the classes" in to_slope(Interval(math.inf))
    assert to_slope(Interval(1.02, 0.8, 1.3)) == "1.02 (0.80 to 1.30)"
