"""Convert images to `pixel_values`; no other module does.

The image processor saved in the model folder does every step: gray -> RGB -> resized to the
model's square -> rescaled and normalised. `normalise(resize(images))` is `to_pixel_values`:
training caches the resized images, augments them and then normalises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import BaseImageProcessor

BICUBIC = 3  # Pillow's value, as processors save it
STEP = "rescale_and_normalize"  # a method of the processors that work on tensors


def make_processor(
    image_size: int, mean: Sequence[float], std: Sequence[float]
) -> BaseImageProcessor:
    """Return a processor for square images of `image_size` pixels.

    `mean` and `std` are those of the pretraining, for values in 0..1. All backbones share this
    processor: published ones differ, and ConvNeXt's crops an eighth of the image.
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
    """Return the model's input for `images`: float32 [N, 3, H, W].

    Of gray images one channel is resized instead of three equal ones, with the same bits.
    """
    if hasattr(processor, STEP) and all(image.mode == "L" for image in images):
        return normalise(resize(images, processor), processor)
    return processor(images=list(images), return_tensors="pt")["pixel_values"]


def resize(images: Sequence[Image.Image], processor: BaseImageProcessor) -> Tensor:
    """Return gray `images` resized by the processor: uint8 [N, 1, H, W].

    `normalise` of the result equals `to_pixel_values` bit for bit: the three channels of a gray
    image are equal, so only one is resized.
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
    """Return the model's input for resized gray pixels: float32 [N, 3, H, W].

    `pixels` are [N, 1, H, W] of 0..255, uint8 or float, on any device.
    """
    rgb = pixels.expand(-1, 3, -1, -1)
    if processor.do_rescale and processor.do_normalize and hasattr(processor, STEP):
        # The processor's own step without its grouping of images by size: half the time.
        return getattr(processor, STEP)(
            rgb, True, processor.rescale_factor, True, processor.image_mean, processor.image_std
        )
    return processor(images=rgb, do_resize=False, return_tensors="pt")["pixel_values"]
