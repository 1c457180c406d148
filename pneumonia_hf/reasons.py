"""Reasons: why an image is referred or refused, and what else a decision is warned of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

# What finds a reason: the checks of the file and its pixels, the input gate, or the threshold; each
# of these refers the image. Those of the model hold for all of its decisions, and refer none.
Kind = Literal["input", "gate", "threshold", "model"]


class Reason(Enum):
    """A reason: its kind, and its sentence with the values in braces."""

    VIEW = "input", "The DICOM file says that its view is {view}, not frontal."
    BITS = (
        "input",
        "The DICOM file has values of more bits than the {bits} that it states, so what is read "
        "may not be its image.",
    )
    WINDOW = (
        "input",
        "The DICOM file's window or VOI LUT cannot be applied, so the image may look unlike that "
        "on a workstation.",
    )
    COLOURED = "input", "The image is coloured, which X-rays are not."
    MODALITY = "input", "The DICOM file says that it is {modality}, not a chest radiograph."
    SMALL = "input", "The image is only {width} x {height} pixels."
    LONG = "input", "The image is much longer than wide ({width} x {height} pixels)."
    BLANK = "input", "The image is nearly blank."
    MASK = "input", "The image has only two gray levels, as a mask has."
    NO_CHEST_XRAY = (
        "gate",
        "This does not look like a frontal chest X-ray; check the file and its orientation.",
    )
    UNLIKE = (
        "gate",
        "The image is unlike those that the model was trained on (99% of them are nearer), so its "
        "probability may not hold.",
    )
    TOO_CLOSE = (
        "threshold",
        "Too close to the threshold: resampling the validation patients moves it between "
        "{low:.3f} and {high:.3f}.",
    )
    NO_THRESHOLD = "model", "This model stores no threshold; 0.5 is used."
    NO_COMMON_THRESHOLD = (
        "model",
        "No threshold was chosen for these models together; the mean of their own thresholds is "
        "used.",
    )
    NO_OWN_THRESHOLD = (
        "model",
        "Some of these models store no threshold; 0.5 is used for them.",
    )
    TTA_ON = (
        "model",
        "Test-time augmentation is on: the score is the mean over several views of the image.",
    )
    TTA_STRANGE = "model", "The threshold was chosen without test-time augmentation."
    TTA_MISSED = "model", "The threshold was chosen with test-time augmentation, which is off."

    def __init__(self, kind: Kind, sentence: str) -> None:
        """Take the two parts of a member's value."""
        self.kind = kind
        self.sentence = sentence

    def caveat(self, **values: Any) -> Caveat:
        """Return the reason with its sentence, in which the values are filled in."""
        return Caveat(self, self.sentence.format(**values))


@dataclass(frozen=True)
class Caveat:
    """A reason that holds for an image or a model, and its sentence for people."""

    reason: Reason
    sentence: str
