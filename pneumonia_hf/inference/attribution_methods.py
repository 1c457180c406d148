"""METHODS: where in an image a network's score for pneumonia comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pneumonia_hf.models.activation_map import class_activation_map, supports_activation_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pneumonia_hf.inference.network import Network

CELLS = 7  # occlusion cells a side: as many as the coarsest feature maps have
BATCH = 4  # covered images at once


@torch.no_grad()
def cam(network: Network, pixel_values: Tensor) -> Tensor:
    """Return what each place adds to the log odds, [1, 3, H, W] -> [h, w] (Zhou et al. 2016).

    With two classes the sum is the log odds but for what has no place: the bias and, of DINOv2,
    the class token. With more, each other class counts as much as the log odds depend on it.
    """
    index = network.class_index
    found = class_activation_map(network.model, pixel_values)
    others = found.logits.clone()
    others[:, index] = -torch.inf
    weights = -others.softmax(dim=1)  # the gradient of Network.log_odds_of
    weights[:, index] = 1
    height, width = found.values.shape[-2:]
    return torch.einsum("nkhw,nk->nhw", found.values, weights)[0] / (height * width)


@torch.no_grad()
def occlusion(network: Network, pixel_values: Tensor) -> Tensor:
    """Return how far the log odds fall when a square is covered, [1, 3, H, W] -> [7, 7].

    A square of two cells a side takes the image's mean and moves by one cell (Zeiler and Fergus
    2014); each cell is the mean over the squares that cover it. It needs neither a gradient nor
    knowledge of the network, so it is the reference for the other methods.
    """
    from captum.attr import Occlusion

    channels, side = pixel_values.shape[1], pixel_values.shape[-1]
    cell = max(side // CELLS, 1)
    fall = Occlusion(network.log_odds_of).attribute(
        pixel_values,
        sliding_window_shapes=(channels, 2 * cell, 2 * cell),
        strides=(channels, cell, cell),
        baselines=float(pixel_values.mean()),
        perturbations_per_eval=BATCH,
    )
    # captum gives every channel the whole fall.
    return adaptive_avg_pool2d(fall.mean(dim=1), CELLS)[0].float()


# Each takes a network and the pixel values of one image [1, 3, H, W], and returns [h, w]: how much
# each place raises (or, if negative, lowers) the log odds.
METHODS: dict[str, Callable[[Network, Tensor], Tensor]] = {"cam": cam, "occlusion": occlusion}
# The methods that not every model supports.
NEEDS: dict[str, Callable[[PreTrainedModel], bool]] = {"cam": supports_activation_map}


def enlarge(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a map at another resolution: [h, w] -> `shape`."""
    return interpolate(values[None, None].float(), size=tuple(shape), mode="bilinear")[0, 0]
