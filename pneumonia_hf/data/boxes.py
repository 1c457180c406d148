"""Radiologists' boxes: the column `boxes`, and the mask that it describes."""

from __future__ import annotations

import numpy as np

BOXES = "boxes"  # column: `x y width height` as shares of the sides, several joined by `;`


def draw_boxes(text: str | None, height: int, width: int) -> np.ndarray | None:
    """Return whether the centre of each cell of a grid lies in a box: bool [height, width].

    None without a box, and for text that is no list of boxes.
    """
    if not text:
        return None
    mask = np.zeros((height, width), bool)
    rows, columns = ((np.arange(cells) + 0.5) / cells for cells in (height, width))
    try:
        for box in text.split(";"):
            x, y, across, down = map(float, box.split())
            inside = (columns >= x) & (columns < x + across)
            mask |= ((rows >= y) & (rows < y + down))[:, None] & inside
    except ValueError:  # a column of this name that holds something else
        return None
    return mask if mask.any() else None
