"""Staged fine-tuning: which part of the network learns when, and how fast each layer does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.models.backbones import backbone_of, head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pneumonia_hf.training.arguments import XrayTrainingArguments


@dataclass(frozen=True)
class Stage:
    """A stretch of training in which the same part of the network learns."""

    trainable_stages: int | None  # of the network, beside the head; None: all of it
    epochs: float
    learning_rate: float

    @property
    def part(self) -> str:
        """What learns, as it is written in a recipe."""
        if self.trainable_stages is None:
            return "all"
        return f"last{self.trainable_stages}" if self.trainable_stages else "head"


def read_stages(arguments: XrayTrainingArguments, trainable_stages: int | None) -> list[Stage]:
    """Return the stages of a run, in order; without `arguments.stages` there is one.

    Args:
        arguments: `stages`, each written PART:EPOCHS:RATE, or epochs and rate of the only one.
        trainable_stages: what learns if `arguments.stages` is left out; None: all.

    Raises:
        UserError: a stage that is written otherwise, or both ways of saying what learns.
    """
    if arguments.stages is None:
        return [Stage(trainable_stages, arguments.num_train_epochs, arguments.learning_rate)]
    if trainable_stages is not None:
        raise UserError("--stages and --trainable_stages both say what learns; leave one out.")
    if not arguments.stages:
        raise UserError("--stages is empty; leave it out, or give such as head:1:1e-3 all:5:3e-5.")
    return [_read_stage(text) for text in arguments.stages]


def _read_stage(text: str) -> Stage:
    found = re.fullmatch(r"(head|all|last([1-9]\d*)):([^:]+):([^:]+)", str(text))
    try:
        epochs, rate = float(found[3]), float(found[4])
    except (TypeError, ValueError):
        found = None
    if found is None or not (0 < epochs < float("inf") and 0 < rate < float("inf")):
        raise UserError(
            f"The stage {text!r} is not PART:EPOCHS:RATE, with PART head, lastN or all, "
            f"such as head:1:1e-3."
        )
    return Stage({"head": 0, "all": None}.get(found[1], int(found[2] or 0)), epochs, rate)


def rate_of_parameters(model: PreTrainedModel, layer_decay: float) -> dict[str, float]:
    """Return what the learning rate of each parameter is multiplied with, by name.

    The head's is 1, that of the last stage of the network `layer_decay`, that of the one before
    `layer_decay` squared, and so on down to the input (Clark et al. 2020, ELECTRA).
    """
    stages = backbone_of(model).stages(model)
    scale_of = {id(parameter): 1.0 for parameter in head_of(model).parameters()}
    for depth, stage in enumerate(reversed(stages), start=1):
        for parameter in stage.parameters():
            scale_of.setdefault(id(parameter), layer_decay**depth)
    lowest = layer_decay ** len(stages)
    return {name: scale_of.get(id(one), lowest) for name, one in model.named_parameters()}


@dataclass(frozen=True)
class Outcome:
    """How a stage of training ended."""

    checkpoint: str  # the name of the best one, or of the last where best is not asked for
    metric: float | None  # its validation metric
    steps: int
    epochs: float
    images_per_second: float | None  # since the stage was last resumed, evaluations included
    log: list[dict[str, Any]]  # the Trainer's
