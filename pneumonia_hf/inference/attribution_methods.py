"""METHODS over captum: where in an image a network's score for pneumonia comes from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pneumonia_hf.errors import ModelError
from pneumonia_hf.models.backbones import backbone_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pneumonia_hf.inference.network import Network

ATTENDING = {"vit", "deit", "dinov2"}  # model types whose attention can be rolled out
SAMPLES, NOISE, SEED = 16, 0.05, 13  # of gradient SHAP
INTEGRATION_STEPS = (64, 128, 256)  # tried in turn until integrated gradients are complete
ROUGH_STEPS = (32,)  # enough for the scale of a map
COMPLETE = 0.05  # largest completeness error, as a share of the difference in log odds
CELLS = 7  # occlusion cells a side: as many as the coarsest feature maps have
INTERNAL_BATCH = 4  # images at once in integrated gradients: 0.2 GB instead of 2


@dataclass(frozen=True)
class RawMap:
    """The result of a method, in its own unit."""

    values: Tensor  # [h, w]: how much each place raises (or, if negative, lowers) the log odds
    completeness_error: float | None = None  # of integrated gradients, as a share


def gradcam(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return Grad-CAM over the last feature map, [1, 3, H, W] -> [h, w] (Selvaraju et al. 2017).

    The gradient is that of the log odds. Negative places are evidence against pneumonia.
    """
    from captum.attr import LayerGradCam

    with _feature_grid(network, pixel_values) as layer:
        found = LayerGradCam(network.log_odds_of, layer).attribute(pixel_values)
    _check_grid(found, network)
    return RawMap(found[0, 0].detach())


def gradient_x_activation(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return gradient times activation of the last feature map, summed over channels: [h, w].

    Shrikumar et al. 2016. Unlike Grad-CAM it takes the gradient of each place, not their mean.
    """
    from captum.attr import LayerGradientXActivation

    with _feature_grid(network, pixel_values) as layer:
        found = LayerGradientXActivation(network.log_odds_of, layer).attribute(pixel_values)
    _check_grid(found, network)
    return RawMap(found.sum(dim=1)[0].detach())


def multi_layer(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return the mean of the Grad-CAMs of the last layers of up to three resolutions: [h, w].

    Each is enlarged to the finest, and scaled so that its evidence for pneumonia sums to that of
    the last feature map: coarse maps know what, fine ones where (as LayerCAM, Jiang et al. 2021).
    """
    from captum.attr import LayerGradCam

    last = gradcam(network, pixel_values).values
    maps = [last]
    for layer in _pyramid(network, pixel_values):
        found = LayerGradCam(network.log_odds_of, layer).attribute(pixel_values)[0, 0].detach()
        scale = last.clamp(min=0).mean() / found.clamp(min=0).mean().clamp_min(1e-12)
        maps.append(found * scale)
    finest = max((one.shape for one in maps), key=lambda shape: shape[0])
    return RawMap(torch.stack([enlarge(one, finest) for one in maps]).mean(dim=0))


def integrated_gradients(
    network: Network, pixel_values: Tensor, rough: bool = False, baseline: str = "black"
) -> RawMap:
    """Return integrated gradients from a baseline image, [1, 3, H, W] -> [H, W].

    Sundararajan et al. 2017; summed over the channels and smoothed over 1/28 of the side, since
    single pixels are not readable. The values should sum to the difference in log odds between
    the image and its baseline (completeness). Steps are doubled until they do to within 5%, up
    to 256; `rough` takes 32 only. `baseline` is of BASELINES.
    """
    from captum.attr import IntegratedGradients

    score, origin = network.log_odds_of, BASELINES[baseline](network, pixel_values)
    with torch.no_grad():
        difference = float(score(pixel_values) - score(origin))
    for steps in ROUGH_STEPS if rough else INTEGRATION_STEPS:
        parts = IntegratedGradients(score).attribute(
            pixel_values, baselines=origin, n_steps=steps, internal_batch_size=INTERNAL_BATCH
        )
        error = abs(float(parts.sum()) - difference) / max(abs(difference), 1e-12)
        if error <= COMPLETE:
            break
    return RawMap(_smooth_channels(parts), error)


def gradient_shap(
    network: Network, pixel_values: Tensor, rough: bool = False, seed: int = SEED
) -> RawMap:
    """Return expected gradients over all BASELINES and noise, [1, 3, H, W] -> [H, W].

    Lundberg and Lee 2017, Erion et al. 2021; 16 samples, smoothed as integrated gradients are.
    """
    from captum.attr import GradientShap

    origins = torch.cat([one(network, pixel_values) for one in BASELINES.values()])
    devices = [pixel_values.device] if pixel_values.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np_state = np.random.get_state()  # captum draws the baselines with numpy
        np.random.seed(seed)
        try:
            # A few at a time: all 16 samples would need as much memory as training.
            parts = [
                GradientShap(network.log_odds_of).attribute(
                    pixel_values, baselines=origins, n_samples=INTERNAL_BATCH, stdevs=NOISE
                )
                for _ in range(SAMPLES // INTERNAL_BATCH)
            ]
        finally:
            np.random.set_state(np_state)
    return RawMap(_smooth_channels(torch.stack(parts).mean(dim=0)))


def attention_rollout(network: Network, pixel_values: Tensor, rough: bool = False) -> RawMap:
    """Return how much of the class token comes from each patch, [1, 3, H, W] -> [h, w].

    Abnar and Zuidema 2020: attention is averaged over heads, and multiplied over layers with a half
    for the residual path. It knows no class: it shows what was looked at, not for what.
    """
    # A copy: transformers leaves hooks in a model that was asked for attention.
    model = copy.deepcopy(network.model)
    model.set_attn_implementation("eager")  # others return no attention
    with torch.no_grad():
        layers = model(pixel_values=pixel_values, output_attentions=True).attentions
    rollout = torch.eye(layers[0].shape[-1], device=pixel_values.device)
    for attention in layers:
        rollout = (attention[0].float().mean(dim=0) @ rollout + rollout) / 2
    patches = rollout[0, backbone_of(model).prefix_tokens :]
    height, width = pixel_values.shape[-2:]
    rows = round((len(patches) * height / width) ** 0.5)
    return RawMap(patches.unflatten(0, (rows, -1)))


def _black(network: Network, pixel_values: Tensor) -> Tensor:
    return network.pixel_values([Image.new("L", pixel_values.shape[-2:])])


def _blurred(network: Network, pixel_values: Tensor) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    side = pixel_values.shape[-1] // 4 | 1
    return gaussian_blur(pixel_values, [side, side], [side / 6.0, side / 6.0])


def _mean(network: Network, pixel_values: Tensor) -> Tensor:
    return pixel_values.mean(dim=(2, 3), keepdim=True).expand_as(pixel_values).contiguous()


# An image without evidence, from which a path to the image begins: [1, 3, H, W].
BASELINES: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "black": _black,
    "blurred": _blurred,
    "mean": _mean,
}


def _smooth_channels(parts: Tensor) -> Tensor:
    """Return the sum over the channels, smoothed over 1/28 of the side: [1, 3, H, W] -> [H, W]."""
    from torchvision.transforms.functional import gaussian_blur

    width = max(3, parts.shape[-1] // 28 | 1)
    return gaussian_blur(parts.detach().sum(dim=1), width)[0].float()


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
    "gradient_x_activation": gradient_x_activation,
    "multi_layer": multi_layer,
    "occlusion": occlusion,
    "integrated_gradients": integrated_gradients,
    "integrated_gradients_blurred": partial(integrated_gradients, baseline="blurred"),
    "integrated_gradients_mean": partial(integrated_gradients, baseline="mean"),
    "gradient_shap": gradient_shap,
    "attention_rollout": attention_rollout,
}


def _has_grid(model: PreTrainedModel) -> bool:
    return backbone_of(model).features is not None


def _has_attention(model: PreTrainedModel) -> bool:
    return model.config.model_type in ATTENDING


def _has_pyramid(model: PreTrainedModel) -> bool:
    return _has_grid(model) and backbone_of(model).prefix_tokens is None


# The methods that not every family supports.
# Methods that draw random numbers, and take a `seed`.
RANDOM_METHODS = {"gradient_shap"}
NEEDS: dict[str, Callable[[PreTrainedModel], bool]] = {
    "gradcam": _has_grid,
    "gradient_x_activation": _has_grid,
    "multi_layer": _has_pyramid,
    "attention_rollout": _has_attention,
}


def _check_grid(found: Tensor, network: Network) -> None:
    if found.ndim != 4:
        raise ModelError(
            f"The last feature map of {network.name} is not a spatial grid; "
            f"use the method occlusion."
        )


def enlarge(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a map at another resolution: [h, w] -> `shape`."""
    return interpolate(values[None, None].float(), size=tuple(shape), mode="bilinear")[0, 0]


def _pyramid(network: Network, pixel_values: Tensor) -> list[nn.Module]:
    """Return the last layer group of each of the two resolutions above that of the last map."""
    sizes: dict[nn.Module, int] = {}

    def note_size(module: nn.Module, _inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            sizes[module] = output.shape[-1]

    hooks = [
        one.register_forward_hook(note_size)
        for one in backbone_of(network.model).layer_groups(network.model)
    ]
    try:
        with torch.no_grad():
            network.model(pixel_values=pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    last_of = {size: module for module, size in sizes.items()}  # the last of each resolution
    return [last_of[size] for size in sorted(last_of)[1:3]]


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
