"""The input gate: is an image a frontal chest X-ray at all, and is it like the training images?

Two questions on the same features, which are measured in the middle of the network: the last
features are no use, since what the head does not need has been trained away there. A classifier
refuses what is no frontal chest X-ray (`inference.frontal`). A distance only refers: that of
Mahalanobis to the nearest class mean in the space of the principal components, with one covariance
for all classes (Lee et al. 2018, arXiv:1807.03888), plus what the components leave out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.errors import ModelError
from pneumonia_hf.inference.frontal import KINDS, Frontal
from pneumonia_hf.models.model_folder import GATE_FILE

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

COMPONENTS = 64
CELLS = 3  # a side of the grid of means, which keep where in the image something is
NUMBERS = ("residual", "limit")  # of a gate's tensors, those that are one number
ABOUT = "about"  # key of the layer's name and the reason of the limit


@dataclass(frozen=True)
class Layer:
    """What the features are measured of, and how."""

    name: str  # dotted, of the module whose output is described
    cells: int = CELLS  # 0: without the grid of means, as gates of 0.5


@dataclass(frozen=True)
class Gate:
    """What the training images look like in the middle of one network."""

    layer: Layer
    mean: np.ndarray  # of the unit-length features, means and deviations alone: [F]
    axes: np.ndarray  # principal components: [K, F]
    centres: np.ndarray  # class means in the components: [G, K]
    precision: np.ndarray  # inverse of the common covariance within classes: [K, K]
    residual: float  # mean squared length of what the components leave out
    limit: float = 1.0  # the distance beyond which an image is referred; infinite: none is
    limit_reason: str = ""  # a sentence
    frontal: Frontal | None = None  # None in gates of 0.5, which refuse nothing

    @classmethod
    def fit(cls, layer: Layer, train: np.ndarray, groups: np.ndarray) -> Gate:
        """Fit the distance to features as `compute_features` returns them.

        Args:
            layer: what they were measured of.
            train: of training images: [N, F].
            groups: the class of each, or its class and site: int [N].
        """
        train = _to_unit_length(_leave_out_grid(train, layer))
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
        return cls(layer, mean, axes, centres, precision, residual)

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Return the distance of each image from the training images: [N], in limits.

        Both terms, Mahalanobis distance and remainder, are 1 on average over the training images
        before the division.
        """
        centred = _to_unit_length(_leave_out_grid(features, self.layer)) - self.mean
        inside = centred @ self.axes.T
        from_centres = inside[:, None] - self.centres  # [N, G, K]
        squares = np.einsum("ngi,ij,ngj->ng", from_centres, self.precision, from_centres)
        left_out = np.sum((centred - inside @ self.axes) ** 2, axis=1)
        return (squares.min(axis=1) / len(self.axes) + left_out / self.residual) / self.limit

    def judge(self, features: np.ndarray) -> np.ndarray:
        """Return the distance of each image and its log probabilities of KINDS: [N, 1 + K].

        The latter are NaN without a classifier.
        """
        kinds = (
            np.full((len(features), len(KINDS)), np.nan)
            if self.frontal is None
            else self.frontal.log_probabilities(features)
        )
        return np.column_stack([self.distances(features), kinds])

    def save(self, folder: Path) -> None:
        """Write GATE_FILE into `folder`; a plain transformers pipeline does not read it."""
        from safetensors.numpy import save_file

        names = ("mean", "axes", "centres", "precision", *NUMBERS)
        arrays = {name: getattr(self, name) for name in names}
        if self.frontal:
            arrays |= {"weights": self.frontal.weights, "bias": self.frontal.bias}
        save_file(
            {name: np.array(value, np.float32, order="C") for name, value in arrays.items()},
            folder / GATE_FILE,
            # One entry: safetensors writes several in an order that changes from run to run.
            metadata={ABOUT: json.dumps([self.layer.name, self.limit_reason])},
        )

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
                about = opened.metadata()
            # Gates of 0.5 have an entry each.
            if ABOUT in about:
                name, reason = json.loads(about[ABOUT])
            else:
                name, reason = about["layer"], about.get("limit_reason", "")
            numbers = {key: float(arrays.pop(key)) for key in NUMBERS}
            frontal = None
            if "weights" in arrays:
                frontal = Frontal(arrays.pop("weights"), arrays.pop("bias"))
            layer = Layer(name, CELLS if frontal else 0)
            gate = cls(layer, **arrays, **numbers, limit_reason=reason)
            return replace(gate, frontal=frontal)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise ModelError(
                f"{GATE_FILE} of {name} is damaged; restore it, or remove it and fit it again with "
                f"recalibrate.py."
            ) from error


def _leave_out_grid(features: np.ndarray, layer: Layer) -> np.ndarray:
    """Return the means and deviations alone: [N, 2C] of [N, (2 + cells²) C]."""
    return features[:, : 2 * features.shape[1] // (2 + layer.cells**2)]


def _to_unit_length(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-12)


def middle_layer(model: PreTrainedModel) -> Layer:
    """Return the layer group half-way through the network."""
    from torch import nn

    from pneumonia_hf.models.backbones import backbone_of

    groups = backbone_of(model).layer_groups(model)
    group = groups[len(groups) // 2]
    # A list of modules is not called itself, so that a hook on it would never run.
    while isinstance(group, nn.ModuleList):
        group = group[len(group) - 1]
    return Layer(next(name for name, module in model.named_modules() if module is group))


def pool_features(output: torch.Tensor | Sequence, cells: int) -> torch.Tensor:
    """Return the features of a layer's output: [N, (2 + cells²) C].

    They are mean and standard deviation of each channel, and its means in a grid of cells x cells
    parts of the image.
    """
    import torch

    values = output if isinstance(output, torch.Tensor) else output[0]
    grid = values
    # [N, C, H, W] of convolutions, [N, T, C] of tokens, of which the first may have no place.
    if values.ndim == 4:
        values = values.flatten(2)
    else:
        values = values.transpose(1, 2)
        side = int(values.shape[2] ** 0.5)
        grid = values[..., values.shape[2] - side**2 :].unflatten(2, (side, side))
    found = [values.mean(2), values.std(2, correction=0)]
    # Not adaptive_avg_pool2d: ONNX has it for sides that the cells divide alone.
    rows, columns = (_cut(side, cells) for side in grid.shape[2:])
    found += [grid[:, :, row, column].mean((2, 3)) for row in rows for column in columns]
    return torch.cat(found, dim=1)


def _cut(side: int, cells: int) -> list[slice]:
    """Return equal parts of `side` positions, which overlap where they would be broken."""
    return [slice(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]


class _Found(Exception):
    """The features are known, and the rest of the network is not needed."""


def compute_features(
    model: PreTrainedModel, layer: Layer, pixel_values: torch.Tensor
) -> np.ndarray:
    """Return the features of images, float64 [N, F]; what follows the layer is not computed."""

    def stop(module: nn.Module, inputs: tuple, output: torch.Tensor | Sequence) -> None:
        raise _Found(pool_features(output, layer.cells).detach().double().cpu().numpy())

    hook = model.get_submodule(layer.name).register_forward_hook(stop)
    try:
        model(pixel_values=pixel_values)
    except _Found as found:
        return found.args[0]
    finally:
        hook.remove()
    raise AssertionError(f"{layer.name} was not called")
