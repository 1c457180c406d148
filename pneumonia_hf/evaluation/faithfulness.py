"""Faithfulness of attribution maps: their agreement with occlusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pneumonia_hf.inference.attribution import CELLS, METHODS, occlusion

if TYPE_CHECKING:
    from pneumonia_hf.inference.predictor import Predictor


def measure_agreement(
    predictor: Predictor, images: Sequence[Image.Image], methods: Sequence[str]
) -> dict[str, list[float]]:
    """Return Spearman's rank correlation of each image's map with occlusion, by method.

    Maps are compared with their sign, before scaling and clipping for display; a constant map
    counts as 0.
    """
    from scipy.stats import spearmanr

    agreement: dict[str, list[float]] = {name: [] for name in methods}
    network = predictor.network
    for image in images:
        pixel_values = network.pixel_values([image])
        fall = occlusion(network, pixel_values).values.cpu().numpy().ravel()
        for name in methods:
            with torch.enable_grad():
                found = METHODS[name](network, pixel_values).values
            whole = interpolate(
                found[None, None].float(), size=pixel_values.shape[-2:], mode="bilinear"
            )
            cells = adaptive_avg_pool2d(whole, CELLS).cpu().numpy().ravel()
            flat = np.ptp(cells) == 0 or np.ptp(fall) == 0
            agreement[name].append(0.0 if flat else float(spearmanr(cells, fall).statistic))
    return agreement
