"""METHODS over captum: which parts of a picture moved the score for pneumonia."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pneumonia_hf.backbones import backbone_of
from pneumonia_hf.errors import UserError

if TYPE_CHECKING:
    from pneumonia_hf.predictor import Predictor

INTEGRATION_STEPS = 32
INTERNAL_BATCH = 4  # pictures at once in integrated gradients: 0.2 GB instead of 2


def gradcam(predictor: Predictor, pixel_values: Tensor) -> Tensor:
    """Return Grad-CAM over the last feature map, [1, 3, H, W] -> [h, w] (Selvaraju et al. 2017).

    Only what speaks for PNEUMONIA is kept: all zeros where nothing does.
    """
    from captum.attr import LayerGradCam

    with _feature_grid(predictor.model, pixel_values) as layer:
        method = LayerGradCam(_logit_of(predictor), layer)
        heat = method.attribute(pixel_values, relu_attributions=True)
    if heat.ndim != 4:
        raise UserError(
            f"The last feature map of {predictor.name} is no grid of places; "
            f"use the method integrated_gradients."
        )
    return heat[0, 0].detach()


def integrated_gradients(predictor: Predictor, pixel_values: Tensor) -> Tensor:
    """Return integrated gradients from a black picture, [1, 3, H, W] -> [H, W].

    Sundararajan et al. 2017; summed over the channels, positive parts only, smoothed over 1/28 of
    the side, since single pixels say nothing to a reader.
    """
    from captum.attr import IntegratedGradients
    from torchvision.transforms.functional import gaussian_blur

    black = predictor.pixel_values([Image.new("L", pixel_values.shape[-2:])])
    parts = IntegratedGradients(_logit_of(predictor)).attribute(
        pixel_values,
        baselines=black,
        n_steps=INTEGRATION_STEPS,
        internal_batch_size=INTERNAL_BATCH,
    )
    heat = parts.detach().sum(dim=1).clamp(min=0)
    width = max(3, pixel_values.shape[-1] // 28 | 1)
    return gaussian_blur(heat, width)[0].float()


METHODS: dict[str, Callable[[Predictor, Tensor], Tensor]] = {
    "gradcam": gradcam,
    "integrated_gradients": integrated_gradients,
}


def explain(predictor: Predictor, image: Image.Image, method: str = "gradcam") -> np.ndarray:
    """Return how much each place of `image` speaks for pneumonia: [H, W] of its size, in 0..1.

    The highest place is 1, and all is 0 where nothing speaks for it. That of an ensemble is the
    mean of its members', scaled again. A heat map shows what moved the score; it does not locate
    disease.

    Raises:
        UserError: unknown method, or a model of a family without an entry in BACKBONES.
    """
    if method not in METHODS:
        raise UserError(f"Unknown method {method!r}; choose from {sorted(METHODS)}.")
    heat = sum(_explain_one(member, image, method) for member in predictor.members)
    return (heat / heat.max().clamp(min=1e-12)).cpu().numpy()


def overlay(image: Image.Image, heat: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """Return `image` in RGB with `heat` ([H, W] in 0..1) laid over it; no heat, no colour."""
    from matplotlib import colormaps

    grey = np.asarray(image.convert("RGB"), dtype=np.float32)
    colours = colormaps["inferno"](heat)[..., :3].astype(np.float32) * 255
    weight = opacity * heat[..., None]
    return Image.fromarray(np.round(grey * (1 - weight) + colours * weight).astype(np.uint8))


def _explain_one(predictor: Predictor, image: Image.Image, method: str) -> Tensor:
    """Return the heat of a single model: [H, W] of the picture's size, in 0..1."""
    with torch.enable_grad():
        heat = METHODS[method](predictor, predictor.pixel_values([image]))
    width, height = image.size
    heat = nn.functional.interpolate(
        heat[None, None].float(), size=(height, width), mode="bilinear", align_corners=False
    )[0, 0]
    heat = heat.clamp(min=0)
    return heat / heat.max().clamp(min=1e-12)


def _logit_of(predictor: Predictor) -> Callable[[Tensor], Tensor]:
    return lambda pixels: predictor.model(pixel_values=pixels).logits[:, predictor.class_index]


@contextmanager
def _feature_grid(model: nn.Module, pixel_values: Tensor) -> Iterator[nn.Module]:
    """Give a layer whose output is the last feature map as a [N, C, h, w] grid.

    A transformer's tokens are put into the grid of their patches on the way through that layer,
    and back, because captum would average tokens over the wrong axis.
    """
    backbone = backbone_of(model)
    layer = backbone.features(model)
    if backbone.prefix_tokens is None:
        yield layer
        return
    grid = nn.Identity()
    prefix = backbone.prefix_tokens
    height, width = pixel_values.shape[-2:]

    def through_grid(_module: nn.Module, _inputs: tuple, tokens: Tensor) -> Tensor:
        first, patches = tokens[:, :prefix], tokens[:, prefix:]
        # Counted, not reckoned from the patch size: Swin merges its patches on the way.
        rows = round((patches.shape[1] * height / width) ** 0.5)
        picture = patches.transpose(1, 2).unflatten(2, (rows, -1))
        return torch.cat([first, grid(picture).flatten(2).transpose(1, 2)], dim=1)

    hook = layer.register_forward_hook(through_grid)
    try:
        yield grid
    finally:
        hook.remove()
