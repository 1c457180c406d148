"""Training images with the masks of radiologists' boxes, for the loss on the activation map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.boxes import BOXES, draw_boxes
from pneumonia_hf.data.pixel_store import XrayPixels

if TYPE_CHECKING:
    from datasets import Dataset

MASKS, KNOWN = "masks", "known"  # keys of a batch


@dataclass(frozen=True)
class BoxedPixels(XrayPixels):
    """XrayPixels whose batches also have masks of the boxes.

    A batch has MASKS, uint8 [N, 1, H, W], 255 in a box, and KNOWN, bool [N]: whether all opacities
    of an image have their box. That holds for the images with a box, and for those without
    pneumonia of a source that has boxes.
    """

    boxes: Sequence[str | None]  # of each image: its cell of the column BOXES
    known: np.ndarray  # bool [N]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return a whole batch, as torch's loaders request it."""
        import torch

        batch = super().__getitems__(indices)
        masks = torch.zeros_like(batch["pixel_values"])
        for mask, index in zip(masks, indices, strict=True):
            drawn = draw_boxes(self.boxes[index], *mask.shape[-2:])
            if drawn is not None:
                mask[0, torch.from_numpy(drawn)] = 255
        known = torch.from_numpy(self.known[np.asarray(indices)])
        return batch | {MASKS: masks, KNOWN: known}


def add_boxes(pixels: XrayPixels, data: Dataset) -> BoxedPixels | None:
    """Return the images with the boxes of their rows, or None if none has a box."""
    boxes = data[BOXES][:] if BOXES in data.column_names else []
    has_box = np.array([bool(cell) for cell in boxes])
    if not has_box.any():
        return None
    sources = np.array(data["source"][:])
    is_boxed = np.isin(sources, sources[has_box])
    known = has_box | (is_boxed & (pixels.labels != 1))
    return BoxedPixels(**vars(pixels), boxes=boxes, known=known)
