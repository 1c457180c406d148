"""METHODS over captum: attribution maps, which show what in an image raised the score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pneumonia_hf.errors import UserError
from pneumonia_hf.models.backbones import backbone_of

if TYPE_CHECKING:
    from pneumonia_hf.inference.network import Network
    from pneumonia_hf.inference.predictor import Predictor

INTEGRATION_STEPS = (64, 128, 256)  # tried in turn until integrated gradients are complete
ROUGH_STEPS = (32,)  # enough for the scale of a map
COMPLETE = 0.05  # largest completeness error, as a share of the difference in log odds
CELLS = 7  # occlusion cells a side: as many as the coarsest feature maps have
INTERNAL_BATCH = 4  # images at once in integrated gradients: 0.2 GB instead of 2
OWN_SCALE = (
    "The model stores no reference for this method, so the map is scaled to its own maximum: its "
    "brightness does not show how much was found."
)


@dataclass(frozen=True)
class RawMap:
    """The result of a method, in its own unit."""

    values: Tensor  # [h, w]: how much each place raises (or, if negative, lowers) the log odds
    completeness_error: float | None = None  # of integrated gradients, as a share


@dataclass(frozen=True)
class AttributionMap:
    """What in an image raised the score for pneumonia; it does not locate disease."""

    values: np.ndarray  # float32 [H, W] of the image's size, 0..1
    on_reference: bool  # whether 1 is the model's reference or more; else the map's own maximum
    completeness_error: float | None = None  # of integrated gradients, as a share

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reservations about this map, a sentence each."""
        found = () if self.on_reference else (OWN_SCALE,)
        if self.completeness_error is not None and self.completeness_error > COMPLETE:
            found += (
                f"Integrated gradients are not complete here: after {INTEGRATION_STEPS[-1]} steps "
                f"their sum differs by {self.completeness_error:.0%} from the score to attribute.",
            )
        return found


def gradcam(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return Grad-CAM over the last feature map, [1, 3, H, W] -> [h, w] (Selvaraju et al. 2017).

    The gradient is that of the log odds. Negative places are evidence against pneumonia.
    """
    from captum.attr import LayerGradCam

    with _feature_grid(network, pixel_values) as layer:
        found = LayerGradCam(network.log_odds_of, layer).attribute(pixel_values)
    if found.ndim != 4:
        raise UserError(
            f"The last feature map of {network.name} is not a spatial grid; "
            f"use the method occlusion."
        )
    return RawMap(found[0, 0].detach())


def integrated_gradients(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return integrated gradients from a black image, [1, 3, H, W] -> [H, W].

    Sundararajan et al. 2017; summed over the channels and smoothed over 1/28 of the side, since
    single pixels are not readable. The values should sum to the difference in log odds between
    the image and the black one (completeness). Steps are doubled until they do to within 5%, up
    to 256; `rough` takes 32 only.
    """
    from captum.attr import IntegratedGradients
    from torchvision.transforms.functional import gaussian_blur

    score = network.log_odds_of
    black = network.pixel_values([Image.new("L", pixel_values.shape[-2:])])
    with torch.no_grad():
        difference = float(score(pixel_values) - score(black))
    for steps in ROUGH_STEPS if rough else INTEGRATION_STEPS:
        parts = IntegratedGradients(score).attribute(
            pixel_values, baselines=black, n_steps=steps, internal_batch_size=INTERNAL_BATCH
        )
        error = abs(float(parts.sum()) - difference) / max(abs(difference), 1e-12)
        if error <= COMPLETE:
            break
    width = max(3, pixel_values.shape[-1] // 28 | 1)
    return RawMap(gaussian_blur(parts.detach().sum(dim=1), width)[0].float(), error)


def occlusion(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return how far the log odds fall when a square is covered, [1, 3, H, W] -> [7, 7].

    A square of two cells a side takes the image's mean and moves by one cell (Zeiler and Fergus
    2014); each cell is the mean over the squares that cover it. It needs neither a gradient nor
    knowledge of the network, so it is the reference for the other methods.
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
    return RawMap(adaptive_avg_pool2d(fall.mean(dim=1), CELLS)[0].float())


# Each takes a network, the pixel values of one image, and whether a rough map is enough.
METHODS: dict[str, Callable[..., RawMap]] = {
    "gradcam": gradcam,
    "occlusion": occlusion,
    "integrated_gradients": integrated_gradients,
}


def methods_for(predictor: Predictor) -> list[str]:
    """Return the methods that a model supports, the best one first."""
    try:
        has_grid = all(backbone_of(one.model).features for one in predictor.networks)
    except UserError:  # an unknown family: its feature map cannot be located
        has_grid = False
    return [name for name in METHODS if has_grid or name != "gradcam"]


def attribute(
    predictor: Predictor, image: Image.Image, method: str | None = None
) -> AttributionMap:
    """Return how much each place of `image` is evidence for pneumonia, on the model's own scale.

    Evidence against pneumonia is left out. The value 1 is the reference that was measured on
    validation images and is stored with the model, or more; so a dark map means that little was
    found. The map of an ensemble is the mean of its members' maps. `method` is of METHODS, by
    default the first that the model supports; any other is a UserError.
    """
    supported = methods_for(predictor)
    method = method or supported[0]
    if method not in supported:
        fault = "does not work for this model" if method in METHODS else "is unknown"
        raise UserError(f"The method {method!r} {fault}; choose from {supported}.")
    maps = [_attribute_one(one, image, method) for one in predictor.networks]
    errors = [one.completeness_error for one in maps if one.completeness_error is not None]
    return AttributionMap(
        np.mean([one.values for one in maps], axis=0),
        all(one.on_reference for one in maps),
        max(errors, default=None),
    )


def measure_references(predictor: Predictor, images: Sequence[Image.Image]) -> dict[str, float]:
    """Return the value of full brightness by method: the median of the maps' maxima, if above 0.

    `predictor` is a single model, calibrated; `images` are true positives outside of its training
    split.
    """
    references = {}
    network = predictor.network
    inputs = [network.pixel_values([one]) for one in images]
    for method in methods_for(predictor):
        try:
            with torch.enable_grad():
                maps = [METHODS[method](network, one, rough=True) for one in inputs]
        except UserError:  # a timm model without a spatial grid
            continue
        maxima = [float(one.values.max()) for one in maps]
        if maxima and np.median(maxima) > 0:
            references[method] = float(np.median(maxima))
    return references


def overlay(image: Image.Image, values: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """Return `image` in RGB with `values` ([H, W] in 0..1) laid over it; 0 adds no colour."""
    from matplotlib import colormaps

    gray = np.asarray(image.convert("RGB"), dtype=np.float32)
    colours = colormaps["inferno"](values)[..., :3].astype(np.float32) * 255
    weight = opacity * values[..., None]
    return Image.fromarray(np.round(gray * (1 - weight) + colours * weight).astype(np.uint8))


def _attribute_one(network: Network, image: Image.Image, method: str) -> AttributionMap:
    with torch.enable_grad():
        found = METHODS[method](network, network.pixel_values([image]))
    values = interpolate(found.values[None, None].float(), size=image.size[::-1], mode="bilinear")[
        0, 0
    ]  # [H, W]
    reference = network.attribution_references.get(method)
    scale = reference or float(values.max())
    values = (values / max(scale, 1e-12)).clamp(0, 1)
    return AttributionMap(values.cpu().numpy(), reference is not None, found.completeness_error)


@contextmanager
def _feature_grid(network: Network, pixel_values: Tensor) -> Iterator[nn.Module]:
    """Yield a layer whose output is the last feature map as a [N, C, h, w] grid.

    captum would average a transformer's tokens over the wrong axis, so a hook arranges them in
    the grid of their patches and back.
    """
    backbone = backbone_of(network.model)
    layer = backbone.features(network.model)
    prefix = backbone.prefix_tokens
    if prefix is None:
        yield layer
        return
    grid = nn.Identity()
    height, width = pixel_values.shape[-2:]

    def pass_through_grid(_module: nn.Module, _inputs: tuple, tokens: Tensor) -> Tensor:
        first, patches = tokens[:, :prefix], tokens[:, prefix:]
        # Counted, not computed from the patch size: Swin merges its patches on the way.
        rows = round((patches.shape[1] * height / width) ** 0.5)
        features = patches.transpose(1, 2).unflatten(2, (rows, -1))
        return torch.cat([first, grid(features).flatten(2).transpose(1, 2)], dim=1)

    hook = layer.register_forward_hook(pass_through_grid)
    try:
        yield grid
    finally:
        hook.remove()
