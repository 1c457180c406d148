"""Models of other projects: what is adapted, with a sentence, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pneumonia_hf.errors import ModelError
from pneumonia_hf.imaging.preprocess import to_pixel_values
from pneumonia_hf.labels import LABELS, OTHER
from pneumonia_hf.reasons import Caveat, Reason

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

OUR_CLASSES = {*LABELS, OTHER}
NO_CROP_FROM = 384  # ConvNeXt's processor crops smaller images alone


def check_model(model: PreTrainedModel, processor: BaseImageProcessor, name: str) -> None:
    """Raise a ModelError if the scores of a loaded model would be wrong without an error.

    They would be where classes do not exclude each other, and where the processor does something
    else than what `to_pixel_values` does of it.
    """
    import torch

    if model.config.num_labels < 2 or model.config.problem_type == "multi_label_classification":
        raise ModelError(f"The classes of {name} do not exclude each other, as they must.")
    noise = np.random.default_rng(0).integers(0, 256, (96, 72), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.fromarray(noise.T)]
    try:
        found = torch.cat([to_pixel_values([one], processor) for one in images])
        plain = processor(images=[one.convert("RGB") for one in images], return_tensors="pt")
        same = torch.allclose(found, plain["pixel_values"], atol=1e-4)
    except Exception:  # each processor raises what its steps raise
        same = False
    if not same:
        raise ModelError(
            f"The image processor of {name} ({type(processor).__name__}) keeps an image's shape, "
            f"or has steps other than resizing, cropping and normalising; that is not supported."
        )


def list_caveats(model: PreTrainedModel, processor: BaseImageProcessor) -> list[Caveat]:
    """Return what holds for each decision of a model that other projects made."""
    caveats = []
    if does_crop(processor):
        caveats.append(Reason.CROPS.caveat())
    labels = [label.strip() for label in model.config.id2label.values()]
    if len(labels) > 2 and (others := [one for one in labels if one.upper() not in OUR_CLASSES]):
        caveats.append(Reason.MORE_CLASSES.caveat(classes=", ".join(others)))
    return caveats


def does_crop(processor: BaseImageProcessor) -> bool:
    """Return whether a processor takes the middle of each image alone."""
    edge = (getattr(processor, "size", None) or {}).get("shortest_edge") or NO_CROP_FROM
    by_share = getattr(processor, "crop_pct", None) and edge < NO_CROP_FROM
    return bool(by_share or getattr(processor, "do_center_crop", False))


def find_crop(
    processor: BaseImageProcessor, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return which part of images of `size` (width, height) a processor that crops takes.

    Left, top, right and bottom are shares of the sides, beyond 0 and 1 where it adds a margin. They
    are measured on images of that size, whose gray says how far right or down it is, to half a
    percent: each processor computes its crop in its own way.
    """
    along, across = (np.round(255 * (np.arange(one) + 0.5) / one).astype(np.uint8) for one in size)
    shape = size[::-1]
    grays = (np.uint8(0), np.uint8(255), along, across[:, None])
    images = (Image.fromarray(np.ascontiguousarray(np.broadcast_to(one, shape))) for one in grays)
    black, white, right, down = (
        to_pixel_values([one], processor)[0, 0].double().numpy() for one in images
    )
    middle = tuple(side // 2 for side in black.shape)
    ends = []
    for line in (right[middle[0]], down[:, middle[1]]):
        place = (line - black[middle]) / (white[middle] - black[middle])
        at = np.flatnonzero((place > 0.1) & (place < 0.9))  # neither a margin nor near an edge
        slope, start = np.polyfit(at + 0.5, place[at], 1)
        ends.append((float(start), float(start + slope * len(place))))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom
