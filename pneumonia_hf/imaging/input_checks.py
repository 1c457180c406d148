"""Check whether an image can be a chest X-ray at all.

Whether it resembles the training data takes the model's features: see the input gate.
"""

from __future__ import annotations

from PIL import Image, ImageStat

from pneumonia_hf.imaging.grayscale import has_two_levels
from pneumonia_hf.imaging.modalities import MODALITIES, RADIOGRAPHY

SMALLEST_SIDE = 64  # pixels; below, the opacities of a mild pneumonia are lost
LEAST_SPREAD = 8.0  # standard deviation, in gray levels of 255; real X-rays have 40 to 70
LONGEST_SHAPE = 2.5  # long side / short side; real X-rays stay below 2.2

MASK = "The image has only two gray levels, as a mask has."


def input_warnings(image: Image.Image) -> tuple[str, ...]:
    """Return the reasons why `image`, from `read_xray`, may not be a chest X-ray: sentences."""
    found = list(image.info.get("warnings", ()))
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
    if ImageStat.Stat(image).stddev[0] < LEAST_SPREAD:  # from the histogram: no copy
        found.append("The image is nearly blank.")
    if has_two_levels(image):
        found.append(MASK)
    return tuple(found)
