"""Teacher: a saved model from which a smaller one learns."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from pneumonia_hf.errors import UserError
from pneumonia_hf.files import read_json
from pneumonia_hf.imaging.preprocess import normalise
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.backbones import fast_precision
from pneumonia_hf.models.model_folder import RUN_FILE


class Teacher:
    """A saved model that scores the batches that the student is trained on."""

    def __init__(self, predictor: Predictor) -> None:
        """Take a predictor, and freeze its parameters.

        Raises:
            UserError: an ensemble, or a model with more than two classes.
        """
        network = predictor.network
        self.model = network.model.eval().requires_grad_(False)
        self.processor = network.processor
        self.pneumonia = network.class_index
        if self.model.config.num_labels != 2:
            raise UserError(
                f"{predictor.name} has {self.model.config.num_labels} classes; "
                f"a teacher must have two, NORMAL and PNEUMONIA."
            )

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the teacher's logits, NORMAL first, for gray pixels of 0..255: [N, 2].

        Args:
            pixels: [N, 1, H, W], augmented; they are resized to the teacher's input size.
        """
        size = (self.processor.size["height"], self.processor.size["width"])
        pixels = pixels.float()
        if pixels.shape[-2:] != size:
            pixels = nn.functional.interpolate(
                pixels, size=size, mode="bilinear", align_corners=False, antialias=True
            )
        model = self.model.to(pixels.device)
        # Half precision is exact enough for targets, and twice as fast where there is hardware.
        half = fast_precision(pixels.device.type)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(half)
        with torch.autocast(pixels.device.type, dtype, enabled=dtype is not None):
            logits = model(pixel_values=normalise(pixels, self.processor)).logits.float()
        return logits[:, [1 - self.pneumonia, self.pneumonia]]


def load_teacher(name: str, hashes: dict[str, list[str]]) -> Teacher:
    """Return the teacher `name`, a saved model's folder or Hub id.

    Args:
        hashes: of the student's images, by split.

    Raises:
        UserError: no such model, or one that was trained on the student's validation or test
            images: the student would learn of them through it.
    """
    predictor = Predictor.from_pretrained(name)
    splits = read_json((predictor.path or Path(name)) / RUN_FILE, otherwise={}).get("hashes", {})
    if not splits:
        logging.getLogger(__name__).warning(
            f"The teacher {name} does not list its training images: if validation or test images "
            f"are among them, the student's metrics are optimistically biased."
        )
    trained_on, chosen_on = (set(splits.get(split, [])) for split in ("train", "validation"))
    # Teacher and student may be chosen on the same validation images.
    for split, known in (("validation", trained_on), ("test", trained_on | chosen_on)):
        if seen := known & set(hashes.get(split, [])):
            raise UserError(
                f"The teacher {name} was made with {len(seen)} images of the {split} split; "
                f"train it on the same splits as the student (the same data and --split_seed)."
            )
    return Teacher(predictor)
