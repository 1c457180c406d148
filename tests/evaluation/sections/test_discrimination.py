"""Metrics and curves at the threshold."""

import numpy as np
import pytest

from pneumonia_hf.evaluation.sections.discrimination import draw_confusion, draw_roc, measure


def test_the_table_of_counts_and_the_matrix_have_a_row_for_each_label(by_hand):
    section = measure(by_hand, {})
    assert section.numbers["metrics"]["sensitivity"]["value"] == 3 / 5
    assert section.body[2].rows == [["NORMAL", 2, 1], ["PNEUMONIA", 2, 3]]
    (axes,) = draw_confusion(by_hand).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["2\n66.7%", "1\n33.3%", "2\n40.0%", "3\n60.0%"]


def test_the_curve_shows_the_model_at_its_threshold(by_hand):
    (axes,) = draw_roc(by_hand).axes
    (point,) = (line for line in axes.lines if line.get_label() == "at the threshold")
    assert point.get_xydata()[0] == pytest.approx([1 / 3, 3 / 5])
    (curve,) = (line for line in axes.lines if line.get_label().startswith("AUROC"))
    area = np.trapezoid(curve.get_ydata(), curve.get_xdata())
    assert area == pytest.approx(by_hand.metrics["auroc"].value)
