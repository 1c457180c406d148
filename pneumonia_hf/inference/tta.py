"""Test-time augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TTA_ON = "Test-time augmentation is on: the score is a mean over several views of the image."
TTA_STRANGE = "The threshold was chosen without test-time augmentation."
TTA_MISSED = "The threshold was chosen with test-time augmentation, which is off."


@dataclass(frozen=True)
class TtaTransform:
    """A small change of how an X-ray lies, which no radiologist would mind."""

    degrees: float = 0.0  # turned clockwise
    zoom: float = 1.0  # magnified
    right: float = 0.0  # shifted, as a share of the width
    down: float = 0.0  # shifted, as a share of the height


# What test-time augmentation scores beside the image itself: less than training does to it, and
# as much one way as the other. No flip: the heart has a side.
TTA_TRANSFORMS = (
    TtaTransform(degrees=3, right=-0.02),
    TtaTransform(degrees=-3, right=0.02),
    TtaTransform(zoom=1.05, down=-0.02),
    TtaTransform(zoom=0.95, down=0.02),
)


def apply_transform(
    pixel_values: torch.Tensor, view: TtaTransform, black: torch.Tensor
) -> torch.Tensor:
    """Return the images as `view` has them: sampled once, bilinearly, black from outside.

    Training's augmentation moves images so too, on the same resized pixels.

    Args:
        pixel_values: [N, C, H, W].
        view: how they are to be moved.
        black: the value of a black pixel, broadcast against `pixel_values`.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    height, width = pixel_values.shape[-2:]
    angle = math.radians(view.degrees)
    # From a place in the view to that in the image; both axes have a length of 2 whatever the
    # image's shape, so that pixels need not be square in them.
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
    # Outside of an image grid_sample finds zeros.
    return grid_sample(pixel_values - black, grid, align_corners=False) + black


def tta_caveats(tta: bool, has_threshold: bool, chosen_with_tta: bool) -> tuple[str, ...]:
    """Return what is to be said of test-time augmentation, where anything is."""
    if not tta:
        return (TTA_MISSED,) if chosen_with_tta else ()
    return (TTA_ON, TTA_STRANGE) if has_threshold and not chosen_with_tta else (TTA_ON,)
