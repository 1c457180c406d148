"""Are attribution maps right about the model? Measured against covering parts of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pneumonia_hf.attribution import METHODS, log_odds_of

if TYPE_CHECKING:
    from pneumonia_hf.predictor import Predictor

CELLS = 7  # maps are compared on a grid of CELLS x CELLS, that of the coarsest feature maps


def occlude(predictor: Predictor, pixel_values: Tensor) -> Tensor:
    """Return how far the log odds fall when a square is covered, [1, 3, H, W] -> [7, 7].

    A square of two cells a side takes the image's mean, and is moved by one cell (Zeiler and
    Fergus 2014); each cell has the mean over the squares that cover it. It needs no gradient and no
    knowledge of the network, so it is what other maps are held against.
    """
    from captum.attr import Occlusion

    cell = pixel_values.shape[-1] // CELLS
    with torch.no_grad():
        fall = Occlusion(log_odds_of(predictor)).attribute(
            pixel_values,
            sliding_window_shapes=(pixel_values.shape[1], 2 * cell, 2 * cell),
            strides=(pixel_values.shape[1], cell, cell),
            baselines=float(pixel_values.mean()),
            perturbations_per_eval=4,
        )
    return adaptive_avg_pool2d(fall.sum(dim=1), CELLS)[0]


def measure_agreement(
    predictor: Predictor, images: Sequence[Image.Image], methods: Sequence[str]
) -> dict[str, list[float]]:
    """Return the rank correlation (Spearman) of each image's map with occlusion, by method.

    Maps are compared with their sign, before they are scaled and cut for display; a map that is
    the same everywhere counts as 0.
    """
    from scipy.stats import spearmanr

    agreement: dict[str, list[float]] = {name: [] for name in methods}
    for image in images:
        pixel_values = predictor.pixel_values([image])
        fall = occlude(predictor, pixel_values).cpu().numpy().ravel()
        for name in methods:
            with torch.enable_grad():
                found = METHODS[name](predictor, pixel_values).values
            whole = interpolate(
                found[None, None].float(), size=pixel_values.shape[-2:], mode="bilinear"
            )
            cells = adaptive_avg_pool2d(whole, CELLS).cpu().numpy().ravel()
            flat = np.ptp(cells) == 0 or np.ptp(fall) == 0
            agreement[name].append(0.0 if flat else float(spearmanr(cells, fall).statistic))
    return agreement
