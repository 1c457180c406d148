"""What the figures of several sections and of the audit share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    plot_intervals(axes, rows)
    axes.axvline(rows[0][1].value, color=OTHER_COLOUR, linestyle=":")
    lowest = np.nanmin([end for _, area, _ in rows for end in (area.low, area.value)])
    axes.set_xlim(right=1 + 0.03 * (1 - lowest))
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.3)
    return figure


def plot_intervals(axes: Axes, rows: Sequence[tuple[str, Interval, bool]]) -> None:
    """Draw the rows of `draw_forest`, the first at the top."""
    for place, (_, area, is_marked) in enumerate(rows):
        colour = MARK if is_marked else COLOUR
        axes.plot([area.low, area.high], [place, place], color=colour, linewidth=1.5)
        axes.plot(area.value, place, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=9)
    axes.invert_yaxis()


def draw_images(lines: Sequence[Sequence[tuple[Any, str]]]) -> Figure:
    """Return a sheet of images, gray or coloured, each below its title."""
    from matplotlib.figure import Figure

    columns = max(map(len, lines))
    figure = Figure(figsize=(1.9 * columns, 2.1 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for of_line, line in zip(grid, lines, strict=True):
        for axes, (image, title) in zip(of_line, line, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set_title(title, fontsize=8, loc="left")
    return figure
