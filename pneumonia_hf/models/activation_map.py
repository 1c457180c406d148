"""The class activation map: logits taken apart into what each position of the image adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pneumonia_hf.errors import ModelError
from pneumonia_hf.models.backbones import backbone_of, head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ActivationMap:
    """The logits of N images as the mean of a map, and a rest that has no place.

    Zhou et al. 2016: a linear head gives the same logits whether it reads the mean of all positions
    or each position, with the mean taken afterwards.
    """

    values: Tensor  # [N, C, h, w]: what each position adds to the logit of each class, times h * w
    rest: Tensor  # [N, C]: the bias of the head, and of DINOv2 what the class token adds

    @property
    def logits(self) -> Tensor:
        """The logits of the model in evaluation mode, without the dropout of training: [N, C]."""
        return self.values.mean(dim=(2, 3)) + self.rest


def to_log_odds(logits: Tensor, index: int = 1) -> Tensor:
    """Return the logit of one class minus the log-sum-exp of the others: [N, C, ...] -> [N, ...].

    It is the logit of that class's probability, for any number of classes.
    """
    others = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
    return logits[:, index] - others.logsumexp(dim=1)


def supports_activation_map(model: PreTrainedModel) -> bool:
    """Return whether the head reads the mean over positions, so that the map is exact.

    False for ViT and DeiT, whose head reads the class token, and for timm models outside of
    `TIMM_AVERAGING` in `models.backbones`.
    """
    try:
        return backbone_of(model).averaged_layer(model) is not None
    except ModelError:  # an unknown family
        return False


@contextmanager
def collect_features(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Yield a list, to which each forward pass of `model` adds the features that its head averages.

    They keep their gradient; `to_activation_map` makes a map of them without a second pass.

    Raises:
        ModelError: the head does not average positions.
    """
    if not supports_activation_map(model):
        raise ModelError(
            f"A model of type {model.config.model_type} has no class activation map: its head does "
            f"not read the mean over all positions."
        )
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        found.append(output)

    hook = backbone_of(model).averaged_layer(model).register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def to_activation_map(
    model: PreTrainedModel, features: Tensor, size: Sequence[int]
) -> ActivationMap:
    """Return the map of what `collect_features` found, differentiable in features and head.

    Args:
        model: of the same forward pass.
        features: [N, C, h, w], or the tokens [N, T, C] of a transformer.
        size: height and width of the pixel values, for the shape of a grid of tokens.
    """
    backbone, head = backbone_of(model), head_of(model)
    weight = head.weight
    rest = head.bias.expand(len(features), -1)
    if backbone.prefix_tokens is not None:
        patches = features[:, backbone.prefix_tokens :]
        if weight.shape[1] == 2 * features.shape[2]:  # DINOv2: class token, then mean of patches
            token_weight, weight = weight.chunk(2, dim=1)
            rest = rest + features[:, 0] @ token_weight.T
        # Counted, not computed from the patch size: Swin merges its patches on the way.
        rows = round((patches.shape[1] * size[0] / size[1]) ** 0.5)
        features = patches.transpose(1, 2).unflatten(2, (rows, -1))
    if backbone.normalises_mean:
        # A layer norm of the mean divides by one number an image, which is that of all positions.
        norm = model.base_model.layernorm
        deviation = features.mean(dim=(2, 3)).var(dim=1, correction=0)
        scale = (deviation + norm.eps).rsqrt()[:, None, None, None]
        features = (features - features.mean(dim=1, keepdim=True)) * scale
        rest = rest + weight @ norm.bias
        weight = weight * norm.weight
    return ActivationMap(torch.einsum("nchw,kc->nkhw", features, weight), rest)


def class_activation_map(model: PreTrainedModel, pixel_values: Tensor) -> ActivationMap:
    """Return the map of one forward pass: pixel values [N, 3, H, W] -> [N, C, h, w] and [N, C].

    Raises:
        ModelError: the head does not average positions.
    """
    with collect_features(model) as found:
        model(pixel_values=pixel_values)
    return to_activation_map(model, found[0], pixel_values.shape[-2:])
