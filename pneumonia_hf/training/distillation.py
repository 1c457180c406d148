"""Teacher: a saved model from which a smaller one learns, also on images without labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pneumonia_hf.data.cache import decode
from pneumonia_hf.data.file_hashes import to_hex
from pneumonia_hf.data.issues import log_issues
from pneumonia_hf.data.load import DataConfig, read_image_lists
from pneumonia_hf.data.pixel_store import XrayPixels
from pneumonia_hf.data.table import RowTable, XrayData
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import expand
from pneumonia_hf.imaging.preprocess import normalise
from pneumonia_hf.inference.batch import find_inputs
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.backbones import fast_precision
from pneumonia_hf.models.run_manifest import read_manifest
from pneumonia_hf.training.losses import Targets, to_two_classes

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from transformers import BaseImageProcessor, PreTrainedModel

logger = logging.getLogger(__name__)
UNLABELLED = "unlabelled"  # key of their hashes in the run manifest, beside those of the splits


@dataclass(frozen=True)
class Teacher:
    """A saved model that scores the batches that the student is trained on.

    With `unlabelled` images it adds some to every batch: of these the student learns the
    teacher's scores alone.
    """

    model: PreTrainedModel  # frozen
    processor: BaseImageProcessor
    pneumonia: int  # index of its class of images with pneumonia
    unlabelled: XrayPixels | None = None
    share: float = 0.0  # of unlabelled images, of the number of labelled ones in a batch

    def add_unlabelled(self, pixels: Tensor) -> Tensor:
        """Return a batch, [N, 1, H, W], followed by its share of `unlabelled`, drawn at random."""
        if self.unlabelled is None:
            return pixels
        count = max(1, round(self.share * len(pixels)))
        # From torch's default generator, which a checkpoint saves.
        rows = torch.randint(len(self.unlabelled), (count,))
        return torch.cat([pixels, self.unlabelled.pixels(rows.numpy()).to(pixels)])

    def make_targets(self, pixels: Tensor, classes: Tensor) -> Targets:
        """Return the targets of augmented `pixels`, [N, 1, H, W].

        `classes`, [M, C], are of the first M images; the others have no share of any class, so
        that their only loss is the teacher's.
        """
        unlabelled = classes.new_zeros(len(pixels) - len(classes), classes.shape[1])
        return Targets(torch.cat([classes, unlabelled]), self.logits(pixels))

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the teacher's logits, PNEUMONIA last, for gray pixels of 0..255: [N, 2].

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
        return to_two_classes(logits, self.pneumonia)


def load_teacher(
    name: str,
    hashes: dict[str, list[str]],
    positive_label: str = LABELS[1],
    unlabelled: XrayPixels | None = None,
    share: float = 0.0,
) -> Teacher:
    """Return the teacher `name`, a saved model's folder or Hub id.

    Args:
        hashes: of the student's images, by split.
        positive_label: the teacher's class of images with pneumonia.
        unlabelled, share: of the Teacher.

    Raises:
        UserError: no such model; an ensemble; or one that was trained on the student's validation
            or test images, which the student would learn through it.
    """
    predictor = Predictor.from_pretrained(
        name, positive_label=positive_label, flags=("--teacher", "--teacher_positive_label")
    )
    network = predictor.network
    known = read_manifest(network.path).hashes
    if not known:
        logger.warning(
            f"The teacher {name} does not list its training images: if validation or test images "
            f"are among them, the student's metrics are optimistically biased."
        )
    trained_on, chosen_on = (known.get(split, frozenset()) for split in ("train", "validation"))
    # Teacher and student may be chosen on the same validation images.
    for split, used in (("validation", trained_on), ("test", trained_on | chosen_on)):
        if seen := used & set(hashes.get(split, [])):
            raise UserError(
                f"The teacher {name} was made with {len(seen)} images of the {split} split; "
                f"train it on the same splits as the student (the same data and --split_seed)."
            )
    model = network.model.eval().requires_grad_(False)
    return Teacher(model, network.processor, network.class_index, unlabelled, share)


def load_unlabelled(
    folders: Sequence[str],
    processor: BaseImageProcessor,
    config: DataConfig,
    held_out: Set[str],
) -> XrayPixels:
    """Return the images in `folders`, and in all folders in them, at the model's size.

    Unreadable images are logged. Images of `config.exclude_images` and `config.test_images`
    are left out. Labels are 0 and mean nothing.

    Args:
        held_out: the hashes of validation and test images, which are left out.

    Raises:
        UserError: a folder does not exist, or nothing is left; with `config.strict`, an image is
            unreadable.
    """
    table = RowTable()
    for folder in folders:
        path = expand(folder).absolute()
        if not path.is_dir():
            raise UserError(f"{folder} is no folder; check --unlabelled.")
        for file in find_inputs([path]):
            table.add(str(file), f"{path.name}/{file.relative_to(path).as_posix()}", 0, str(file))
    decoded = decode(table.finish(XrayData()), processor, "unlabelled")
    log_issues(decoded.issues, config.strict)
    lists = [*(config.exclude_images or []), *(config.test_images or [])]
    pixels, left_out = decoded.pixels, held_out | read_image_lists(lists)
    kept = ~np.isin(to_hex(pixels.hashes), list(left_out))
    if not kept.any():
        raise UserError("No --unlabelled image is left to train on; name another folder.")
    if not kept.all():
        logger.warning(f"{np.sum(~kept)} --unlabelled images are held out, and left out here.")
    return XrayPixels(pixels.store, pixels.rows[kept], pixels.labels[kept], pixels.hashes[kept])
