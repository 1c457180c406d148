"""What the figures of several sections share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.statistics.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR, OTHER_COLOUR, MARK = "#1f5fa8", "#767676", "#c0392b"


def make_axes() -> tuple[Figure, Axes]:
    """Return a figure of one plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.6), layout="constrained")
    return figure, figure.subplots()


def draw_forest(rows: Sequence[tuple[str, Interval, bool]], title: str) -> Figure:
    """Return a figure of intervals by row: name, interval, and whether it is marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.32 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots()
    for place, (_, area, is_marked) in enumerate(rows):
        colour = MARK if is_marked else COLOUR
        axes.plot([area.low, area.high], [place, place], color=colour, linewidth=1.5)
        axes.plot(area.value, place, "o", color=colour, markersize=5)
    axes.axvline(rows[0][1].value, color=OTHER_COLOUR, linestyle=":")
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=9)
    axes.invert_yaxis()
    lowest = np.nanmin([end for _, area, _ in rows for end in (area.low, area.value)])
    axes.set_xlim(right=1 + 0.03 * (1 - lowest))
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.3)
    return figure
