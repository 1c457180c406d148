"""Test-time augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pneumonia_hf.reasons import Reason

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TtaTransform:
    """A small change of position that leaves the diagnosis unchanged."""

    degrees: float = 0.0  # rotation, clockwise
    zoom: float = 1.0
    right: float = 0.0  # shift, as a share of the width
    down: float = 0.0  # shift, as a share of the height


# The views beside the image itself: smaller changes than in training, symmetric in direction.
# No flip: the heart lies on the left.
TTA_TRANSFORMS = (
    TtaTransform(degrees=3, right=-0.02),
    TtaTransform(degrees=-3, right=0.02),
    TtaTransform(zoom=1.05, down=-0.02),
    TtaTransform(zoom=0.95, down=0.02),
)


def apply_transform(
    pixel_values: torch.Tensor, view: TtaTransform, black: torch.Tensor
) -> torch.Tensor:
    """Return images, [N, C, H, W], moved by `view`: one bilinear sampling, black outside.

    `black` is the value of a black pixel, broadcast against `pixel_values`.
    """
    from pneumonia_hf.imaging.transforms import rotation, scaling, translation, warp

    height, width = pixel_values.shape[-2:]
    matrix = rotation(view.degrees) @ scaling(1 / view.zoom, 1 / view.zoom)
    matrix = matrix @ translation(-view.right * width, -view.down * height)
    return warp(pixel_values - black, matrix) + black  # black is 0 for `warp`


def tta_reasons(tta: bool, has_threshold: bool, chosen_with_tta: bool) -> tuple[Reason, ...]:
    """Return the reservations about test-time augmentation and the threshold."""
    if not tta:
        return (Reason.TTA_MISSED,) if chosen_with_tta else ()
    is_strange = has_threshold and not chosen_with_tta
    return (Reason.TTA_ON, Reason.TTA_STRANGE) if is_strange else (Reason.TTA_ON,)
