"""The only file that turns images into `pixel_values`.

Gray image -> RGB -> resized straight to the model's square -> scaled and normalised, all by the
image processor that is saved in the model's folder. `resize` and `normalise` are the two halves
of `to_pixel_values`: training keeps what the first returns, augments it and applies the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import BaseImageProcessor

BICUBIC = 3  # Pillow's number, which processors save
STEP = "rescale_and_normalize"  # of the processors that work on tensors


def make_processor(
    image_size: int, mean: Sequence[float], std: Sequence[float]
) -> BaseImageProcessor:
    """Return a processor for images of `image_size` pixels squared.

    `mean` and `std` are those of the pretraining, for values in 0..1. Any backbone gets this same
    processor, because published ones differ in ways that hurt: ConvNeXt's cuts off an eighth of
    the image.
    """
    from transformers import ViTImageProcessor

    # No crop: costophrenic angles lie at the border.
    return ViTImageProcessor(
        do_convert_rgb=True,
        size={"height": image_size, "width": image_size},
        resample=BICUBIC,
        image_mean=list(mean),
        image_std=list(std),
    )


def to_pixel_values(images: Sequence[Image.Image], processor: BaseImageProcessor) -> Tensor:
    """Return the model's input for `images`: float32 [N, 3, H, W]."""
    return processor(images=list(images), return_tensors="pt")["pixel_values"]


def resize(images: Sequence[Image.Image], processor: BaseImageProcessor) -> Tensor:
    """Return gray `images` at the model's size, as the processor resizes them: uint8 [N, 1, H, W].

    `normalise` of the result equals `to_pixel_values` of the images bit for bit: the three
    channels of a gray image are alike, and only one of them is resized here.
    """
    import numpy as np
    import torch

    gray = [torch.from_numpy(np.array(image))[None] for image in images]
    return processor(
        images=gray,
        do_convert_rgb=False,
        do_rescale=False,
        do_normalize=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )["pixel_values"]


def normalise(pixels: Tensor, processor: BaseImageProcessor) -> Tensor:
    """Return the model's input for resized gray `pixels` of 0..255: float32 [N, 3, H, W].

    Args:
        pixels: [N, 1, H, W], uint8 or float, on any device.
        processor: the processor that resized them.
    """
    rgb = pixels.expand(-1, 3, -1, -1)
    if processor.do_rescale and processor.do_normalize and hasattr(processor, STEP):
        # The processor's own step, without its sorting of images by size: half the time.
        return getattr(processor, STEP)(
            rgb, True, processor.rescale_factor, True, processor.image_mean, processor.image_std
        )
    return processor(images=rgb, do_resize=False, return_tensors="pt")["pixel_values"]
