"""Figures that several reports share."""

import numpy as np
from matplotlib.figure import Figure

from pneumonia_hf.reporting.drawing import MARK, draw_forest, draw_images
from pneumonia_hf.statistics.intervals import Interval


def test_a_forest_has_an_interval_for_each_row_the_first_at_the_top():
    rows = [("all", Interval(0.8, 0.7, 0.9), False), ("one", Interval(0.6, 0.5, 0.7), True)]
    (axes,) = draw_forest(rows, "AUROC").axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["all", "one"]
    assert axes.yaxis.get_inverted()
    line, point, marked, _, reference = axes.lines
    assert list(line.get_xdata()) == [0.7, 0.9] and list(point.get_xdata()) == [0.8]
    assert list(marked.get_xdata()) == [0.5, 0.7] and marked.get_color() == MARK
    assert list(reference.get_xdata()) == [0.8, 0.8]  # of the first row


def test_a_sheet_shows_each_image_below_its_title_also_in_lines_of_unequal_length():
    black, coloured = np.zeros((4, 6), np.uint8), np.full((4, 6, 3), 9, np.uint8)
    figure = draw_images([[(black, "a"), (coloured, "b")], [(black, "c")]])
    assert isinstance(figure, Figure)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in shown] == ["a", "b", "c"]
    assert len(figure.axes) == 4 and not any(axes.axison for axes in figure.axes)
    assert shown[0].images[0].get_clim() == (0, 255)
