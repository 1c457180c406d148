"""Reasons: why an image is referred or refused, and what else a decision is warned of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Reason(Enum):
    """A reason by its sentence, with the values in braces."""

    # Checks of the file and its pixels. These, the gate's and the threshold's refer an image, but
    # those of REFUSING.
    VIEW = "The DICOM file says that its view is {view}, not frontal."
    BITS = (
        "The DICOM file has values of more bits than the {bits} that it states, so what is read "
        "may not be its image."
    )
    WINDOW = (
        "The DICOM file's window or VOI LUT cannot be applied, so the image may look unlike that "
        "on a workstation."
    )
    COLOURED = "The image is coloured, which X-rays are not."
    MODALITY = "The DICOM file says that it is {modality}, not a chest radiograph."
    SMALL = "The image is only {width} x {height} pixels."
    LONG = "The image is much longer than wide ({width} x {height} pixels)."
    BLANK = "The image is nearly blank."
    MASK = "The image has only two gray levels, as a mask has."
    # The input gate.
    NO_CHEST_XRAY = (
        "This does not look like a frontal chest X-ray; check the file and its orientation."
    )
    ROTATED = "The image seems rotated by 90 degrees; give it upright."
    UPSIDE_DOWN = "The image seems upside down; give it upright."
    INVERTED = "The gray levels of the image seem inverted; give it with bright bones."
    SIDE_VIEW = "The image seems a side view; the model knows frontal chest X-rays alone."
    PART = "The image seems to show a part of the chest only; give the whole chest."
    NO_XRAY = "The image seems no X-ray."
    UNLIKE = (
        "The image is unlike those that the model was trained on, so its probability may not hold."
    )
    # The threshold.
    TOO_CLOSE = (
        "Too close to the threshold: resampling the validation patients moves it between "
        "{low:.3f} and {high:.3f}."
    )
    # What else the network says; this refers none.
    OTHER_ABNORMAL = (
        "The X-ray looks abnormal, but not like pneumonia; NORMAL means without pneumonia here."
    )
    # The model: these hold for all of its decisions, and refer none.
    NO_THRESHOLD = "This model stores no threshold; 0.5 is used."
    NO_COMMON_THRESHOLD = (
        "No threshold was chosen for these models together; the mean of their own thresholds is "
        "used."
    )
    NO_OWN_THRESHOLD = "Some of these models store no threshold; 0.5 is used for them."
    CROPS = "The image processor of this model crops the border of each image."
    MORE_CLASSES = "This model also knows {classes}; only its class of pneumonia counts as that."
    TTA_ON = "Test-time augmentation is on: the score is the mean over several views of the image."
    TTA_STRANGE = "The threshold was chosen without test-time augmentation."
    TTA_MISSED = "The threshold was chosen with test-time augmentation, which is off."

    def caveat(self, **values: Any) -> Caveat:
        """Return the reason with its sentence, in which the values are filled in."""
        return Caveat(self, self.value.format(**values))


# The reasons of Xray.caveats that refer.
OF_INPUT = frozenset(
    [
        *(Reason.VIEW, Reason.BITS, Reason.WINDOW, Reason.COLOURED),
        *(Reason.SMALL, Reason.LONG, Reason.BLANK, Reason.MASK),
    ]
)
# It is no frontal chest X-ray, and is refused: by the input gate, or since its file says so.
REFUSING = frozenset(
    [
        *(Reason.NO_CHEST_XRAY, Reason.ROTATED, Reason.UPSIDE_DOWN, Reason.INVERTED),
        *(Reason.SIDE_VIEW, Reason.PART, Reason.NO_XRAY, Reason.MODALITY),
    ]
)


@dataclass(frozen=True, repr=False)
class Caveat:
    """A reason that holds for an image or a model, and its sentence for people."""

    reason: Reason
    sentence: str

    def __repr__(self) -> str:
        return repr(self.sentence)
