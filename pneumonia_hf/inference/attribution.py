"""METHODS over captum: attribution maps, which say what in an image raised the score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pneumonia_hf.errors import UserError
from pneumonia_hf.models.backbones import backbone_of

if TYPE_CHECKING:
    from pneumonia_hf.inference.network import Network
    from pneumonia_hf.inference.predictor import Predictor

# Steps of integrated gradients: more are taken until the map is complete.
INTEGRATION_STEPS = (64, 128, 256)
ROUGH_STEPS = (32,)  # enough for the scale of a map
COMPLETE = 0.05  # error of completeness, as a share of the difference that the map explains
CELLS = (
    7  # of a side, in which occlusion covers the image: as many as the coarsest feature maps have
)
INTERNAL_BATCH = 4  # images at once in integrated gradients: 0.2 GB instead of 2
REFERENCES_KEY = "attribution_references"  # among our settings in config.json
OWN_SCALE = (
    "The model stores no reference for this map, so it is scaled to its own maximum: its "
    "brightness says nothing of how much was found."
)


@dataclass(frozen=True)
class RawMap:
    """What a method finds, in its own unit."""

    values: Tensor  # [h, w]: how much each place raises the log odds of pneumonia, or lowers them
    completeness_error: float | None = None  # of integrated gradients, as a share


@dataclass(frozen=True)
class AttributionMap:
    """What in an image raised the score for pneumonia; it does not locate disease."""

    values: np.ndarray  # float32 [H, W] of the image's size, 0..1
    # Whether 1 stands for the model's reference, or more; else it is the map's own maximum.
    on_reference: bool
    completeness_error: float | None = None  # of integrated gradients, as a share

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be known of this map, a sentence each."""
        summary = () if self.on_reference else (OWN_SCALE,)
        if self.completeness_error is not None and self.completeness_error > COMPLETE:
            summary += (
                f"Integrated gradients is not complete here: its parts differ from the score "
                f"that they should sum to by {self.completeness_error:.0%}, after "
                f"{INTEGRATION_STEPS[-1]} steps.",
            )
        return summary


def gradcam(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return Grad-CAM over the last feature map, [1, 3, H, W] -> [h, w] (Selvaraju et al. 2017).

    The gradient is that of the log odds. Negative places speak against pneumonia.
    """
    from captum.attr import LayerGradCam

    with _feature_grid(network, pixel_values) as layer:
        method = LayerGradCam(network.log_odds_of, layer)
        found = method.attribute(pixel_values)
    if found.ndim != 4:
        raise UserError(
            f"The last feature map of {network.name} is no grid of places; "
            f"use the method occlusion."
        )
    return RawMap(found[0, 0].detach())


def integrated_gradients(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return integrated gradients from a black image, [1, 3, H, W] -> [H, W].

    Sundararajan et al. 2017; summed over the channels, and smoothed over 1/28 of the side, since
    single pixels say nothing to a reader. The parts should sum to the difference
    in log odds between the image and the black one (completeness): steps are doubled until they
    do to within 5%, up to 256; `rough` is content with 32.
    """
    from captum.attr import IntegratedGradients
    from torchvision.transforms.functional import gaussian_blur

    score = network.log_odds_of
    black = network.pixel_values([Image.new("L", pixel_values.shape[-2:])])
    with torch.no_grad():
        difference = float(score(pixel_values) - score(black))
    for steps in ROUGH_STEPS if rough else INTEGRATION_STEPS:
        parts = IntegratedGradients(score).attribute(
            pixel_values,
            baselines=black,
            n_steps=steps,
            internal_batch_size=INTERNAL_BATCH,
        )
        error = abs(float(parts.sum()) - difference) / max(abs(difference), 1e-12)
        if error <= COMPLETE:
            break
    values = parts.detach().sum(dim=1)
    width = max(3, pixel_values.shape[-1] // 28 | 1)
    return RawMap(gaussian_blur(values, width)[0].float(), error)


def occlusion(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return how far the log odds fall when a square is covered, [1, 3, H, W] -> [7, 7].

    A square of two cells a side takes the image's mean, and is moved by one cell (Zeiler and
    Fergus 2014); each cell has the mean over the squares that cover it. It needs no gradient and
    no knowledge of the network, so that other maps are held against it.
    """
    from captum.attr import Occlusion

    channels, side = pixel_values.shape[1], pixel_values.shape[-1]
    cell = max(side // CELLS, 1)
    with torch.no_grad():
        fall = Occlusion(network.log_odds_of).attribute(
            pixel_values,
            sliding_window_shapes=(channels, 2 * cell, 2 * cell),
            strides=(channels, cell, cell),
            baselines=float(pixel_values.mean()),
            perturbations_per_eval=INTERNAL_BATCH,
        )
    # captum gives every channel the whole fall.
    return RawMap(nn.functional.adaptive_avg_pool2d(fall.mean(dim=1), CELLS)[0].float())


# Each takes a network, the pixel values of one image and whether a rough map will do.
METHODS: dict[str, Callable[..., RawMap]] = {
    "gradcam": gradcam,
    "occlusion": occlusion,
    "integrated_gradients": integrated_gradients,
}


def methods_for(predictor: Predictor) -> list[str]:
    """Return the methods that can explain a model, the best one first."""
    able = list(METHODS)
    try:
        has_grid = all(backbone_of(one.model).features for one in predictor.networks)
    except UserError:  # another family: where its feature map is, nobody knows
        has_grid = False
    if not has_grid:
        able.remove("gradcam")
    return able


def attribute(
    predictor: Predictor, image: Image.Image, method: str | None = None
) -> AttributionMap:
    """Return how much each place of `image` speaks for pneumonia, on the model's own scale.

    What speaks against it is left out.
    The value 1 stands for the reference that was measured on validation images and is stored
    with the model, or more; so a dark map means that little was found. That of an ensemble is the
    mean of its members'. A map shows what raised the score; it does not locate disease.

    Args:
        predictor: the model.
        image: as `read_xray` returns it.
        method: of METHODS; left out, the first that the model can be explained with.

    Raises:
        UserError: unknown method, or one that cannot explain this model.
    """
    able = methods_for(predictor)
    method = method or able[0]
    if method not in able:
        what = "cannot explain this model" if method in METHODS else "is unknown"
        raise UserError(f"The method {method!r} {what}; choose from {able}.")
    several = [_attribute_one(one, image, method) for one in predictor.networks]
    errors = [one.completeness_error for one in several if one.completeness_error is not None]
    return AttributionMap(
        np.mean([one.values for one in several], axis=0),
        all(one.on_reference for one in several),
        max(errors, default=None),
    )


def measure_references(predictor: Predictor, images: Sequence[Image.Image]) -> dict[str, float]:
    """Return what a map of full brightness stands for: the median of the maps' maxima.

    Args:
        predictor: a single model, calibrated.
        images: pneumonias that the model finds, none of them from its training.

    Returns:
        A reference for each method that the model can be explained with and that finds anything.
    """
    references = {}
    network = predictor.network
    inputs = [network.pixel_values([one]) for one in images]
    for method in methods_for(predictor):
        try:
            with torch.enable_grad():
                maps = [METHODS[method](network, one, rough=True) for one in inputs]
        except UserError:  # no grid of places in a model of timm
            continue
        maxima = [float(one.values.max()) for one in maps]
        if maxima and np.median(maxima) > 0:
            references[method] = float(np.median(maxima))
    return references


def overlay(image: Image.Image, values: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """Return `image` in RGB with `values` ([H, W] in 0..1) laid over it; no value, no colour."""
    from matplotlib import colormaps

    gray = np.asarray(image.convert("RGB"), dtype=np.float32)
    colours = colormaps["inferno"](values)[..., :3].astype(np.float32) * 255
    weight = opacity * values[..., None]
    return Image.fromarray(np.round(gray * (1 - weight) + colours * weight).astype(np.uint8))


def _attribute_one(network: Network, image: Image.Image, method: str) -> AttributionMap:
    """Return the map of a single model."""
    with torch.enable_grad():
        found = METHODS[method](network, network.pixel_values([image]))
    width, height = image.size
    values = nn.functional.interpolate(
        found.values[None, None].float(), size=(height, width), mode="bilinear", align_corners=False
    )[0, 0]
    reference = network.attribution_references.get(method)
    scale = reference or float(values.max())
    values = (values / max(scale, 1e-12)).clamp(0, 1)
    return AttributionMap(values.cpu().numpy(), reference is not None, found.completeness_error)


@contextmanager
def _feature_grid(network: Network, pixel_values: Tensor) -> Iterator[nn.Module]:
    """Give a layer whose output is the last feature map as a [N, C, h, w] grid.

    A transformer's tokens are put into the grid of their patches on the way through that layer,
    and back, because captum would average tokens over the wrong axis.
    """
    backbone = backbone_of(network.model)
    layer = backbone.features(network.model)
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
        image = patches.transpose(1, 2).unflatten(2, (rows, -1))
        return torch.cat([first, grid(image).flatten(2).transpose(1, 2)], dim=1)

    hook = layer.register_forward_hook(through_grid)
    try:
        yield grid
    finally:
        hook.remove()
