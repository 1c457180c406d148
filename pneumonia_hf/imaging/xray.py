"""Xray: an image with what its file says of it, and the checks whether it can be a chest X-ray.

Whether it resembles the training data takes the model's features: see the input gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageStat

from pneumonia_hf.imaging.grayscale import has_two_levels
from pneumonia_hf.imaging.modalities import MODALITIES, RADIOGRAPHY
from pneumonia_hf.reasons import Caveat, Reason

SMALLEST_SIDE = 64  # pixels; below, the opacities of a mild pneumonia are lost
LEAST_SPREAD = 8.0  # standard deviation, in gray levels of 255; real X-rays have 40 to 70
LONGEST_SHAPE = 2.5  # long side / short side; real X-rays stay below 2.2


@dataclass(frozen=True)
class Xray:
    """One X-ray as `open_xray` returns it."""

    image: Image.Image  # mode "L", upright and not inverted: 0 is black (air), 255 white (bone)
    mode: str  # as stored: "RGB", "I;16", "DICOM 12 bit MONOCHROME2"
    format: str = ""  # "JPEG", "DICOM"; empty if it was not read from a file
    coloured: bool = False  # whether the file has colours other than gray
    # What a DICOM header says, empty where it says nothing.
    modality: str = ""  # "DX"
    view: str = ""  # ViewPosition: "PA", "LL"
    side: str = ""  # ImageLaterality or Laterality: "L", "R", "B"
    header_caveats: tuple[Caveat, ...] = ()  # no frontal view, or what could not be done

    @cached_property
    def caveats(self) -> tuple[Caveat, ...]:
        """The reasons why this may not be a chest X-ray, or not as a workstation shows it."""
        found, (width, height) = list(self.header_caveats), self.image.size
        if self.coloured:
            found.append(Reason.COLOURED.caveat())
        if self.modality not in RADIOGRAPHY:
            meaning = f" ({MODALITIES[self.modality]})" if self.modality in MODALITIES else ""
            found.append(Reason.MODALITY.caveat(modality=self.modality + meaning))
        if min(width, height) < SMALLEST_SIDE:
            found.append(Reason.SMALL.caveat(width=width, height=height))
        if max(width, height) > LONGEST_SHAPE * min(width, height):
            found.append(Reason.LONG.caveat(width=width, height=height))
        if ImageStat.Stat(self.image).stddev[0] < LEAST_SPREAD:  # from the histogram: no copy
            found.append(Reason.BLANK.caveat())
        if has_two_levels(self.image):
            found.append(Reason.MASK.caveat())
        return tuple(found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The sentences of the caveats."""
        return tuple(caveat.sentence for caveat in self.caveats)
