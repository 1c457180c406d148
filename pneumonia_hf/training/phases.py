"""Staged fine-tuning: which part of the network learns when, and how fast each layer does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.models.backbones import backbone_of, head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which the same part of the network learns."""

    trainable_layer_groups: int | None  # of the network, beside the head; None: all of it
    epochs: float
    learning_rate: float

    @property
    def name(self) -> str:
        """What learns, as it is written in a recipe."""
        if self.trainable_layer_groups is None:
            return "all"
        return f"last{self.trainable_layer_groups}" if self.trainable_layer_groups else "head"


def read_phases(
    texts: Sequence[str] | None,
    epochs: float,
    learning_rate: float,
    trainable_layer_groups: int | None = None,
) -> list[Phase]:
    """Return the training phases of a run, in order; without `texts` there is one.

    Args:
        texts: each phase as PART:EPOCHS:RATE, or None.
        epochs, learning_rate: of the only phase, without `texts`.
        trainable_layer_groups: those that learn in the only phase; None: all.

    Raises:
        UserError: a phase in another form, or both `texts` and `trainable_layer_groups`.
    """
    if texts is None:
        return [Phase(trainable_layer_groups, epochs, learning_rate)]
    if trainable_layer_groups is not None:
        raise UserError(
            "--phases and --trainable_layer_groups both say what learns; leave one out."
        )
    if not texts:
        raise UserError("--phases is empty; leave it out, or give such as head:1:1e-3 all:5:3e-5.")
    return [_read_phase(text) for text in texts]


def _read_phase(text: str) -> Phase:
    found = re.fullmatch(r"(head|all|last([1-9]\d*)):([^:]+):([^:]+)", str(text))
    try:
        epochs, rate = float(found[3]), float(found[4])
    except (TypeError, ValueError):
        found = None
    if found is None or not (0 < epochs < float("inf") and 0 < rate < float("inf")):
        raise UserError(
            f"The phase {text!r} is not PART:EPOCHS:RATE, with PART head, lastN or all, "
            f"such as head:1:1e-3."
        )
    return Phase({"head": 0, "all": None}.get(found[1], int(found[2] or 0)), epochs, rate)


def rate_of_parameters(model: PreTrainedModel, layer_decay: float) -> dict[str, float]:
    """Return what the learning rate of each parameter is multiplied with, by name.

    The head's is 1, that of the last phase of the network `layer_decay`, that of the one before
    `layer_decay` squared, and so on down to the input (Clark et al. 2020, ELECTRA).
    """
    groups = backbone_of(model).layer_groups(model)
    scale_of = {id(parameter): 1.0 for parameter in head_of(model).parameters()}
    for depth, group in enumerate(reversed(groups), start=1):
        for parameter in group.parameters():
            scale_of.setdefault(id(parameter), layer_decay**depth)
    lowest = layer_decay ** len(groups)
    return {name: scale_of.get(id(one), lowest) for name, one in model.named_parameters()}


@dataclass(frozen=True)
class Outcome:
    """How a phase of training ended."""

    checkpoint: str  # the name of the best one, or of the last where best is not asked for
    metric: float | None  # its validation metric
    steps: int
    epochs: float
    images_per_second: float | None  # since the phase was last resumed, evaluations included
    log: list[dict[str, Any]]  # the Trainer's
