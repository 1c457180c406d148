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
from pneumonia_hf.models.model_folder import RUN_FILE


class Teacher:
    """A saved model that says what it thinks of the very batch that the student sees."""

    def __init__(self, predictor: Predictor) -> None:
        """Take a predictor; its parameters are frozen.

        Raises:
            UserError: an ensemble, or a model that has more classes than two.
        """
        network = predictor.network
        self.model = network.model.eval().requires_grad_(False)
        self.processor = network.processor
        self.pneumonia = network.class_index
        if self.model.config.num_labels != 2:
            raise UserError(
                f"{predictor.name} has {self.model.config.num_labels} classes; "
                f"a teacher must tell NORMAL from PNEUMONIA."
            )

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the teacher's logits, NORMAL first, for gray pixels of 0..255: [N, 2].

        Args:
            pixels: [N, 1, H, W] as they come out of the augmentation; they are resized to the
                teacher's own size.
        """
        size = (self.processor.size["height"], self.processor.size["width"])
        pixels = pixels.float()
        if pixels.shape[-2:] != size:
            pixels = nn.functional.interpolate(
                pixels, size=size, mode="bilinear", align_corners=False, antialias=True
            )
        model = self.model.to(pixels.device)
        logits = model(pixel_values=normalise(pixels, self.processor)).logits
        return logits[:, [1 - self.pneumonia, self.pneumonia]]


def load_teacher(name: str, hashes: dict[str, list[str]]) -> Teacher:
    """Return the teacher `name`, a saved model's folder or Hub id.

    Raises:
        UserError: no such model; or one that was trained on images of our validation or test
            part, of which the student would then learn through it.
    """
    predictor = Predictor.from_pretrained(name)
    folder = predictor.path or Path(name)
    splits = read_json(folder / RUN_FILE, otherwise={}).get("hashes", {})
    if not splits:
        logging.getLogger(__name__).warning(
            f"The teacher {name} does not tell which images it has learnt from: "
            f"if validation or test images are among them, the numbers of its student flatter."
        )
    learnt, chosen = (set(splits.get(split, [])) for split in ("train", "validation"))
    # A teacher that was chosen on the student's validation split only shares its choice with it.
    for split, known in (("validation", learnt), ("test", learnt | chosen)):
        seen = known & set(hashes.get(split, []))
        if seen:
            raise UserError(
                f"The teacher {name} was made with {len(seen)} images of the {split} split; "
                f"train it on the same parts as the student (the same data and --split_seed)."
            )
    return Teacher(predictor)
