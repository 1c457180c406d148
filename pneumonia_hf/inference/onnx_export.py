"""A saved model -> one ONNX file that other programs run without our libraries."""

from __future__ import annotations

import copy
import json
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pneumonia_hf import __version__
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import unfinished_file
from pneumonia_hf.imaging.preprocess import BICUBIC
from pneumonia_hf.inference.backends import (
    NEEDED,
    Compute,
    check_equal,
    check_packages,
    export_network,
    open_session,
    write_program,
)
from pneumonia_hf.inference.batch import check_output_file

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram
    from transformers import BaseImageProcessor, PreTrainedModel

    from pneumonia_hf.inference.predictor import Predictor

PACKAGES = NEEDED["onnx"]
CHECKED_BATCHES = (1, 3)  # other sizes than the one that is traced
CHECKED_SIZES = ((410, 530), (90, 70))  # height and width: smaller and larger than the square
SMALLEST = 32  # of an image with preprocessing, in pixels
# The processor rounds gray levels after each axis, and the exported program once.
ROUNDING = 0.01


def export_onnx(
    predictor: Predictor,
    path: str | Path,
    overwrite: bool = False,
    with_preprocessing: bool = False,
) -> Path:
    """Write the model as one ONNX file, check its logits against the model's, return its path.

    Input: `pixel_values`, float32 [N, 3, H, W], from the model's processor. Outputs: `logits`,
    float32 [N, classes], and `probability`, float32 [N], the calibrated P(pneumonia): the
    temperature is part of the weights. The metadata hold, as text: `labels`, `image_mean` and
    `image_std` (JSON lists), `image_size` in pixels a side, `resample` and `version`; if a
    threshold was chosen, also `threshold`, `refer_low` and `refer_high`. The members of an
    ensemble are exported one by one; test-time augmentation is left to the caller.

    With preprocessing the input is `image`, uint8 [N, height, width] of any size, upright gray
    images in which bones are bright, and the only output is `probability`.

    Raises:
        UserError: a missing package, an ensemble, a network that ONNX cannot express, a path that
            `check_output` rejects, logits that differ by more than 1e-4.
    """
    check_output(path, overwrite)
    path = Path(path)
    network = predictor.network
    import torch

    # A copy on the CPU leaves the predictor's own model as it is.
    model = copy.deepcopy(network.model).cpu().eval()
    size = network.processor.size
    crops = getattr(network.processor, "do_center_crop", False)
    if "height" not in size or crops or network.processor.resample != BICUBIC:
        raise UserError(
            f"{predictor.name} does not preprocess images as models of this project do; "
            f"only those can be exported."
        )
    shape = (3, size["height"], size["width"])
    if with_preprocessing:
        program = _export_whole(model, network.processor, network.class_index)
    else:
        program = export_network(model, torch.zeros(2, *shape), class_index=network.class_index)
    program.model.metadata_props.update(_describe(predictor))
    generator = torch.Generator().manual_seed(0)
    with unfinished_file(path) as unfinished:
        program.save(unfinished, external_data=False)  # one file
        compute = open_session(unfinished, torch.get_num_threads())
        if with_preprocessing:
            _check_whole(compute, predictor)
            return path
        for batch in CHECKED_BATCHES:
            pixel_values = torch.randn(batch, *shape, generator=generator)
            with torch.inference_mode():
                expected = model(pixel_values=pixel_values).logits.float().numpy()
            found, what = compute(pixel_values)[0], "The logits of the exported network"
            check_equal(found, expected, what, "nothing was written")
    return path


def _export_whole(
    model: PreTrainedModel, processor: BaseImageProcessor, class_index: int
) -> ONNXProgram:
    """Return a program: image, uint8 [N, height, width] -> probability [N]."""
    import torch

    square = processor.size["height"], processor.size["width"]
    # Not by the processor: it would keep, for all later images, what it computes while traced.
    mean, std = (
        torch.tensor(list(one)).reshape(1, -1, 1, 1)
        for one in (processor.image_mean, processor.image_std)
    )

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            pixels = torch.nn.functional.interpolate(
                image[:, None].float(), size=square, mode="bicubic", antialias=True
            )
            pixels = pixels.round().clamp(0, 255)  # as the processor resizes gray levels
            pixels = (pixels * processor.rescale_factor - mean) / std  # [N, 3, H, W]
            logits = self.model(pixel_values=pixels).logits
            return logits.softmax(dim=1)[:, class_index]

    axes = ("batch", 1), ("height", SMALLEST), ("width", SMALLEST)
    shapes = {axis: torch.export.Dim(name, min=least) for axis, (name, least) in enumerate(axes)}
    example = torch.zeros(2, 300, 280, dtype=torch.uint8)
    return write_program(Whole().eval(), "image", example, shapes, ["probability"])


def _check_whole(compute: Compute, predictor: Predictor) -> None:
    """Raise a UserError if the probabilities of a file with preprocessing are not the model's."""
    import torch

    generator = np.random.default_rng(0)
    for batch, (height, width) in zip(CHECKED_BATCHES, CHECKED_SIZES, strict=True):
        coarse = generator.integers(0, 256, (batch, 12, 12), dtype=np.uint8)
        drawn = [Image.fromarray(one).resize((width, height), BICUBIC) for one in coarse]
        found = compute(torch.from_numpy(np.stack(list(map(np.asarray, drawn)))))[0]
        expected = predictor.probabilities(drawn)
        what = "The probabilities of the exported network"
        check_equal(found, expected, what, "nothing was written", ROUNDING)


def check_output(path: str | Path, overwrite: bool) -> None:
    """Raise a UserError if a package is missing, or no file can be written to `path`."""
    check_output_file(str(path), overwrite)
    check_packages("ONNX", PACKAGES)


def _describe(predictor: Predictor) -> dict[str, str]:
    """Return the metadata of the file; ONNX holds text only."""
    processor, point = predictor.network.processor, predictor.operating_point
    labels = predictor.network.model.config.id2label
    metadata = {
        "labels": json.dumps([labels[index] for index in sorted(labels)]),
        "image_size": str(processor.size["height"]),
        "image_mean": json.dumps(list(processor.image_mean)),
        "image_std": json.dumps(list(processor.image_std)),
        "resample": "bicubic, antialiased, straight to the square; then divided by 255",
        "version": __version__,
    }
    if predictor.has_threshold:
        names = ("threshold", "refer_low", "refer_high")
        metadata |= dict(zip(names, map(str, astuple(point)), strict=True))
    return metadata
