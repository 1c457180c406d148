"""A saved model -> one ONNX file that other programs run without our libraries."""

from __future__ import annotations

import copy
import json
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf import __version__
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import unfinished_file
from pneumonia_hf.imaging.preprocess import BICUBIC
from pneumonia_hf.inference.backends import (
    NEEDED,
    check_equal,
    check_packages,
    export_network,
    open_session,
)
from pneumonia_hf.inference.batch import check_output_file

if TYPE_CHECKING:
    from pneumonia_hf.inference.predictor import Predictor

PACKAGES = NEEDED["onnx"]
CHECKED_BATCHES = (1, 3)  # other sizes than the one that is traced


def export_onnx(predictor: Predictor, path: str | Path, overwrite: bool = False) -> Path:
    """Write the model as one ONNX file, check its logits against the model's, return its path.

    Input: `pixel_values`, float32 [N, 3, H, W], from the model's processor. Outputs: `logits`,
    float32 [N, classes], and `probability`, float32 [N], the calibrated P(pneumonia): the
    temperature is part of the weights. The metadata hold, as text: `labels`, `image_mean` and
    `image_std` (JSON lists), `image_size` in pixels a side, `resample` and `version`; if a
    threshold was chosen, also `threshold`, `refer_low` and `refer_high`. The members of an
    ensemble are exported one by one; test-time augmentation is left to the caller.

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
    program = export_network(model, torch.zeros(2, *shape), class_index=network.class_index)
    program.model.metadata_props.update(_describe(predictor))
    generator = torch.Generator().manual_seed(0)
    with unfinished_file(path) as unfinished:
        program.save(unfinished, external_data=False)  # one file
        compute = open_session(unfinished, torch.get_num_threads())
        for batch in CHECKED_BATCHES:
            pixel_values = torch.randn(batch, *shape, generator=generator)
            with torch.inference_mode():
                expected = model(pixel_values=pixel_values).logits.float().numpy()
            found, what = compute(pixel_values)[0], "The logits of the exported network"
            check_equal(found, expected, what, "nothing was written")
    return path


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
