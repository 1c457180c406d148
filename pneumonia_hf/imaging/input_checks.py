"""Does an image look like a chest X-ray at all? Plain checks of the image itself.

Whether it is one *like those the model was trained on* takes the model's features; these checks
only stop what no chest X-ray can be.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pneumonia_hf.imaging.modalities import MODALITIES, RADIOGRAPHY

SMALLEST_SIDE = 64  # pixels; below it the opacities of a mild pneumonia are gone
LEAST_SPREAD = 8.0  # standard deviation in gray levels of 255; real X-rays have 40 to 70
LONGEST_SHAPE = 2.5  # long side / short side; real X-rays stay below 2.2


def input_warnings(image: Image.Image) -> tuple[str, ...]:
    """Return what speaks against `image` being a chest X-ray, a sentence each; none is good.

    Args:
        image: as `read_xray` returns it.
    """
    found = []
    width, height = image.size
    if image.info.get("coloured"):
        found.append("The image is coloured, which X-rays are not.")
    modality = image.info.get("modality", "")
    if modality not in RADIOGRAPHY:
        meaning = f" ({MODALITIES[modality]})" if modality in MODALITIES else ""
        found.append(f"The DICOM file says that it is {modality}{meaning}, not a chest radiograph.")
    if min(width, height) < SMALLEST_SIDE:
        found.append(f"The image is only {width} x {height} pixels.")
    if max(width, height) > LONGEST_SHAPE * min(width, height):
        found.append(f"The image is much longer than wide ({width} x {height} pixels).")
    if np.asarray(image).std() < LEAST_SPREAD:
        found.append("The image is nearly blank.")
    return tuple(found)
