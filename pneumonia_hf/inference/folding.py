"""Fold batch norms into the convolutions before them, for scoring alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fold_batch_norms(model: PreTrainedModel, images: torch.Tensor) -> PreTrainedModel:
    """Return a copy of a model whose batch norms are part of the convolutions before them.

    They are found by running the model on `images`: a batch norm whose input is the output of a
    convolution. The model itself is returned if it has none, or if the copy's logits differ by
    more than 1e-3, because something else reads what a convolution returns.
    """
    if not any(isinstance(one, nn.BatchNorm2d) for one in model.modules()):
        return model
    original, model = model, copy.deepcopy(model)
    made: dict[int, tuple[nn.Module, torch.Tensor]] = {}  # the tensor is kept, and so is its id
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note_output(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        made[id(output)] = (module, output)

    def note_input(module: nn.Module, inputs: tuple) -> None:
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = [
        one.register_forward_hook(note_output)
        if isinstance(one, nn.Conv2d)
        else one.register_forward_pre_hook(note_input)
        for one in model.modules()
        if isinstance(one, nn.Conv2d | nn.BatchNorm2d)
    ]
    try:
        with torch.inference_mode():
            expected = model(pixel_values=images).logits
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    for convolution, norm in pairs:
        fused = nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
        model.set_submodule(names[convolution], fused)
        # timm's batch norms hold what follows them.
        rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
        model.set_submodule(names[norm], nn.Sequential(*rest))
    with torch.inference_mode():
        difference = (model(pixel_values=images).logits - expected).abs().max()
    return model if difference <= 1e-3 else original
