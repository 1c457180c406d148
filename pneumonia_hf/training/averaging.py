"""Averaged weights: an exponential moving average, or the equal mean of the last steps."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForImageClassification

AVERAGE_FILE = "average.safetensors"  # in a checkpoint, where a run averages its weights
AVERAGED_STEPS = "averaged_steps"  # in its metadata


def make_average(model: nn.Module, ema_decay: float) -> AveragedModel:
    """Return the average of no steps yet; `ema_decay` 0: of all steps alike."""

    def move(averaged: list[Tensor], live: list[Tensor], count: Tensor) -> None:
        # The decay begins low, so that the first steps soon count little.
        steps = int(count)
        decay = min(ema_decay, (1 + steps) / (10 + steps)) if ema_decay else steps / (1 + steps)
        for mean, value in zip(averaged, live, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:  # batch norm's counter
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(move), use_buffers=True)


def save_average(average: AveragedModel, checkpoint: Path) -> None:
    """Write the averaged weights, and the number of their steps, into a checkpoint."""
    weights = {name: value.contiguous() for name, value in average.module.state_dict().items()}
    steps = str(int(average.n_averaged))
    save_file(weights, checkpoint / AVERAGE_FILE, {"format": "pt", AVERAGED_STEPS: steps})


def load_average(model: nn.Module, ema_decay: float, checkpoint: Path) -> AveragedModel | None:
    """Return the averaged weights of a checkpoint, or None if it has none."""
    path = checkpoint / AVERAGE_FILE
    if not path.exists():
        return None
    average = make_average(model, ema_decay)
    average.module.load_state_dict(load_file(path), strict=True)
    with safe_open(path, "pt") as file:
        average.n_averaged.fill_(int(file.metadata()[AVERAGED_STEPS]))
    return average


def load_best(checkpoint: Path) -> nn.Module:
    """Return the model of a checkpoint with the weights that were evaluated."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint, dtype=torch.float32)
    if (average := checkpoint / AVERAGE_FILE).exists():
        model.load_state_dict(load_file(average), strict=True)
    return model
