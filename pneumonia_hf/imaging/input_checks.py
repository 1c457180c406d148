"""Does a picture look like a chest X-ray at all? Plain checks of the picture itself.

Whether it is one *like those the model was trained on* takes the model's features; these checks
only stop what no chest film can be.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pneumonia_hf.imaging.modalities import MODALITIES, RADIOGRAPHY

SMALLEST_SIDE = 64  # pixels; below it the opacities of a mild pneumonia are gone
LEAST_SPREAD = 8.0  # standard deviation in grey levels of 255; real films have 40 to 70
LONGEST_SHAPE = 2.5  # long side / short side; real films stay below 2.2


def doubts(picture: Image.Image) -> tuple[str, ...]:
    """Return what speaks against `picture` being a chest X-ray, a sentence each; none is good.

    Args:
        picture: as `read_xray` returns it.
    """
    found = []
    width, height = picture.size
    if picture.info.get("coloured"):
        found.append("The picture is coloured, which X-rays are not.")
    modality = picture.info.get("modality", "")
    if modality not in RADIOGRAPHY:
        meaning = f" ({MODALITIES[modality]})" if modality in MODALITIES else ""
        found.append(f"The DICOM file says that it is {modality}{meaning}, not a chest radiograph.")
    if min(width, height) < SMALLEST_SIDE:
        found.append(f"The picture is only {width} x {height} pixels.")
    if max(width, height) > LONGEST_SHAPE * min(width, height):
        found.append(f"The picture is much longer than wide ({width} x {height} pixels).")
    if np.asarray(picture).std() < LEAST_SPREAD:
        found.append("The picture is nearly blank.")
    return tuple(found)
