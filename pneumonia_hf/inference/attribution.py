"""Attribution maps, which show what in an image raised the score, on the model's own scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pneumonia_hf.errors import SettingError
from pneumonia_hf.inference.attribution_methods import METHODS, NEEDS, enlarge
from pneumonia_hf.inference.foreign import does_crop, find_crop
from pneumonia_hf.inference.network import COMPUTING, Network

if TYPE_CHECKING:
    from torch import Tensor

    from pneumonia_hf.inference.predictor import Predictor

OWN_SCALE = (
    "The model stores no reference for this method, so the map is scaled to its own maximum: its "
    "brightness does not show how much was found."
)


@dataclass(frozen=True)
class AttributionMap:
    """What in an image raised the score for pneumonia; it does not locate disease."""

    values: np.ndarray  # float32 [H, W] of the image's size, 0..1
    on_reference: bool  # whether 1 is the model's reference or more; else the map's own maximum

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reservations about this map, a sentence each."""
        return () if self.on_reference else (OWN_SCALE,)


def methods_for(predictor: Predictor) -> list[str]:
    """Return the methods that a model supports, the quickest one first."""
    models = [one.model for one in predictor.networks]
    return [name for name in METHODS if name not in NEEDS or all(map(NEEDS[name], models))]


def attribute(
    predictor: Predictor, image: Image.Image, method: str | None = None
) -> AttributionMap:
    """Return how much each place of `image` is evidence for pneumonia, on the model's own scale.

    Evidence against pneumonia is left out, and what a processor crops off has the value 0. The
    value 1 is the reference that was measured on validation images and is stored with the model, or
    more; so a dark map means that little was found. The map of an ensemble is the mean of its
    members' maps. `method` is of METHODS, by default the first that the model supports; any other
    is a SettingError.
    """
    supported = methods_for(predictor)
    method = method or supported[0]
    if method not in supported:
        fault = "does not work for this model" if method in METHODS else "is unknown"
        raise SettingError(f"The method {method!r} {fault}; choose from {supported}.")
    maps = [_attribute_one(one, image, method) for one in predictor.networks]
    values = np.mean([one.values for one in maps], axis=0)
    return AttributionMap(values, all(one.on_reference for one in maps))


def measure_references(predictor: Predictor, images: Sequence[Image.Image]) -> dict[str, float]:
    """Return the value of full brightness by method: the median of the maps' maxima, if above 0.

    `predictor` is a single model, calibrated; `images` are true positives outside of its training
    split.
    """
    references = {}
    network = predictor.network
    inputs = [network.pixel_values([one]) for one in images]
    for method in methods_for(predictor):
        maxima = [float(METHODS[method](network, one).max()) for one in inputs]
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
    with COMPUTING:
        found = METHODS[method](network, network.pixel_values([image]))
    values = _to_image(found, network, image.size)
    reference = network.attribution_references.get(method)
    scale = reference or float(values.max())
    values = (values / max(scale, 1e-12)).clamp(0, 1)
    return AttributionMap(values.cpu().numpy(), reference is not None)


def _to_image(found: Tensor, network: Network, size: tuple[int, int]) -> Tensor:
    """Return a map of the network's input as one of an image of `size` (width, height): [H, W]."""
    from torch.nn.functional import pad

    width, height = size
    if not does_crop(network.processor):
        return enlarge(found, (height, width))
    shares = find_crop(network.processor, size)
    left, top, right, bottom = (
        round(share * side) for share, side in zip(shares, (*size, *size), strict=True)
    )
    part = enlarge(found, (bottom - top, right - left))
    return pad(part, (left, width - right, top, height - bottom))  # below 0 it cuts off
