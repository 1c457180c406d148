"""The input gate: is an image like the training images, and a chest X-ray at all?

Each image is described by the means and standard deviations of the channels in the middle of the
network. In the space of their principal components, the distance is that of Mahalanobis to the
nearest class mean, with one covariance for all classes (Lee et al. 2018, arXiv:1807.03888), plus
what the components leave out. The last features are no use for it: what the head does not need
has been trained away there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.errors import ModelError
from pneumonia_hf.models.model_folder import GATE_FILE

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

COMPONENTS = 64
QUANTILE = 0.99  # of the validation images that count as like the training images
REFUSED_AT = 2.0  # times the distance at QUANTILE: not a chest X-ray
LEAST_IMAGES = (200, 50)  # of training and validation; with fewer there is no gate
MOST_IMAGES = 2000  # of training


@dataclass(frozen=True)
class Gate:
    """What the training images look like in the middle of one network."""

    layer: str  # dotted name of the module whose output is described
    mean: np.ndarray  # of the unit-length features: [F]
    axes: np.ndarray  # principal components: [K, F]
    centres: np.ndarray  # class means in the components: [G, K]
    precision: np.ndarray  # inverse of the common covariance within classes: [K, K]
    residual: float  # mean squared length of what the components leave out
    limit: float  # the distance at QUANTILE of the validation images

    @classmethod
    def fit(cls, layer: str, train: np.ndarray, groups: np.ndarray, validation: np.ndarray) -> Gate:
        """Fit to features as `capture_features` returns them.

        Args:
            layer: dotted name of the module they come from.
            train: of training images: [N, F].
            groups: the class of each, or its class and site: int [N].
            validation: of other images of the same kind, which give the limit: [M, F].
        """
        train = _to_unit_length(train)
        mean = train.mean(axis=0)
        count = min(COMPONENTS, len(train) // 4, train.shape[1])
        axes = np.linalg.svd(train - mean, full_matrices=False)[2][:count]
        inside = (train - mean) @ axes.T
        centres = np.stack([inside[groups == one].mean(axis=0) for one in np.unique(groups)])
        within = inside - centres[np.unique(groups, return_inverse=True)[1]]
        covariance = within.T @ within / len(within)
        # A small ridge: a constant feature has no variance.
        ridge = 1e-6 * np.trace(covariance) / len(covariance) + 1e-12
        precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
        residual = float(np.mean(np.sum((train - mean - inside @ axes) ** 2, axis=1)) + 1e-12)
        gate = cls(layer, mean, axes, centres, precision, residual, 1.0)
        limit = float(np.quantile(gate.distances(validation), QUANTILE))
        return cls(**asdict(gate) | {"limit": limit})

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Return the distance of each image from the training images: [N], in limits.

        QUANTILE of images like those of validation are below 1. Both terms, Mahalanobis distance
        and remainder, are 1 on average over the training images before the division.
        """
        centred = _to_unit_length(features) - self.mean
        inside = centred @ self.axes.T
        from_centres = inside[:, None] - self.centres  # [N, G, K]
        squares = np.einsum("ngi,ij,ngj->ng", from_centres, self.precision, from_centres)
        left_out = np.sum((centred - inside @ self.axes) ** 2, axis=1)
        return (squares.min(axis=1) / len(self.axes) + left_out / self.residual) / self.limit

    def save(self, folder: Path) -> None:
        """Write GATE_FILE into `folder`; a plain transformers pipeline does not read it."""
        from safetensors.numpy import save_file

        arrays = {name: np.asarray(value, np.float32) for name, value in self._numbers().items()}
        save_file(arrays, folder / GATE_FILE, metadata={"layer": self.layer})

    def _numbers(self) -> dict[str, np.ndarray | float]:
        return {name: value for name, value in asdict(self).items() if name != "layer"}

    @classmethod
    def load(cls, folder: Path, name: str) -> Gate | None:
        """Return the gate of the model folder called `name`, or None if it has none.

        Raises:
            ModelError: a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        file = folder / GATE_FILE
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="numpy") as opened:
                arrays = {key: opened.get_tensor(key).astype(np.float64) for key in opened.keys()}
                layer = opened.metadata()["layer"]
            numbers = {key: float(arrays.pop(key)) for key in ("residual", "limit")}
            return cls(layer, **arrays, **numbers)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise ModelError(
                f"{GATE_FILE} of {name} is damaged; restore it, or remove it and fit it again with "
                f"recalibrate.py."
            ) from error


def _to_unit_length(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-12)


def middle_layer(model: PreTrainedModel) -> str:
    """Return the dotted name of the layer group half-way through the network."""
    from torch import nn

    from pneumonia_hf.models.backbones import backbone_of

    groups = backbone_of(model).layer_groups(model)
    group = groups[len(groups) // 2]
    # A list of modules is not called itself, so that a hook on it would never run.
    while isinstance(group, nn.ModuleList):
        group = group[len(group) - 1]
    return next(name for name, module in model.named_modules() if module is group)


def pool_features(output: torch.Tensor | Sequence) -> torch.Tensor:
    """Return mean and standard deviation of each channel of a layer's output: [N, 2C]."""
    import torch

    values = output if isinstance(output, torch.Tensor) else output[0]
    # [N, C, H, W] of convolutions, [N, T, C] of tokens
    values = values.flatten(2) if values.ndim == 4 else values.transpose(1, 2)
    return torch.cat([values.mean(2), values.std(2, correction=0)], dim=1)


class _Found(Exception):
    """The features are known, and the rest of the network is not needed."""


@contextmanager
def capture_features(
    model: PreTrainedModel, layer: str, stop: bool = False
) -> Iterator[list[np.ndarray]]:
    """Collect the features of all images that the model scores within the context.

    For each forward pass a float64 array [N, 2C] is appended: mean and standard deviation of each
    channel over all positions. With `stop` the context ends with the first, at that layer: the
    rest of the network is not computed.
    """
    found: list[np.ndarray] = []

    def collect(module: nn.Module, inputs: tuple, output: torch.Tensor | Sequence) -> None:
        found.append(pool_features(output).detach().double().cpu().numpy())
        if stop:
            raise _Found

    hook = model.get_submodule(layer).register_forward_hook(collect)
    try:
        yield found
    except _Found:
        pass
    finally:
        hook.remove()
