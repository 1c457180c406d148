"""Test-time augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TTA_ON = "Test-time augmentation is on: the score is the mean over several views of the image."
TTA_STRANGE = "The threshold was chosen without test-time augmentation."
TTA_MISSED = "The threshold was chosen with test-time augmentation, which is off."


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

    `black` is the value of a black pixel, broadcast against `pixel_values`. The augmentation in
    training samples the same resized pixels in the same way.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    height, width = pixel_values.shape[-2:]
    angle = math.radians(view.degrees)
    # From a place in the view to its place in the image. Both axes have length 2 whatever the
    # image's shape, so pixels need not be square.
    turn = torch.tensor(
        [
            [math.cos(angle), math.sin(angle) * height / width],
            [-math.sin(angle) * width / height, math.cos(angle)],
        ]
    )
    back = turn / view.zoom
    shift = back @ torch.tensor([[2 * view.right], [2 * view.down]])
    matrix = torch.cat([back, -shift], dim=1).to(pixel_values)
    grid = affine_grid(
        matrix.expand(len(pixel_values), 2, 3), pixel_values.shape, align_corners=False
    )
    # grid_sample pads with zeros.
    return grid_sample(pixel_values - black, grid, align_corners=False) + black


def tta_caveats(tta: bool, has_threshold: bool, chosen_with_tta: bool) -> tuple[str, ...]:
    """Return the reservations about test-time augmentation and the threshold."""
    if not tta:
        return (TTA_MISSED,) if chosen_with_tta else ()
    return (TTA_ON, TTA_STRANGE) if has_threshold and not chosen_with_tta else (TTA_ON,)
