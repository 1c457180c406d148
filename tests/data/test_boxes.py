import numpy as np
import pytest

from pneumonia_hf.data.boxes import draw_boxes


def test_boxes_are_shares_of_the_sides_from_the_upper_left_corner():
    mask = draw_boxes("0.5 0 0.25 0.5;0 0.75 0.25 0.25", 4, 8)
    expected = np.zeros((4, 8), bool)
    expected[:2, 4:6] = True
    expected[3, :2] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("text", [None, "", "wide", "0.1 0.2 0.3", "0.5 0.5 0 0", "1 2 3 4;"])
def test_text_without_a_box_has_no_mask(text):
    assert draw_boxes(text, 10, 10) is None
