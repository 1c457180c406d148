"""Training phases: which part of the network is trained, for how long, at which rates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.models.backbones import backbone_of, head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Phase:
    """A period of training in which the same part of the network is trained."""

    trainable_layer_groups: int | None  # the last N, besides the head; None: the whole network
    epochs: float
    learning_rate: float

    @property
    def name(self) -> str:
        """The trained part of the network, as a recipe names it."""
        if self.trainable_layer_groups is None:
            return "all"
        return f"last{self.trainable_layer_groups}" if self.trainable_layer_groups else "head"


def read_phase(text: str) -> Phase:
    """Return the phase that PART:EPOCHS:RATE stands for, or raise a UserError."""
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
    """Return the factor on the learning rate of each parameter, by name.

    It is 1 for the head, `layer_decay` for the last layer group, `layer_decay` squared for the
    one before, and so on down to the input (Clark et al. 2020, ELECTRA).
    """
    groups = backbone_of(model).layer_groups(model)
    scale_of = {id(parameter): 1.0 for parameter in head_of(model).parameters()}
    for depth, group in enumerate(reversed(groups), start=1):
        for parameter in group.parameters():
            scale_of.setdefault(id(parameter), layer_decay**depth)
    lowest = layer_decay ** len(groups)
    return {name: scale_of.get(id(weight), lowest) for name, weight in model.named_parameters()}


@dataclass(frozen=True)
class Outcome:
    """How a training phase ended."""

    checkpoint: str  # name of the best one; of the last without load_best_model_at_end
    metric: float | None  # its validation metric
    steps: int
    epochs: float
    images_per_second: float | None  # since the phase was last resumed, with evaluations
    log: list[dict[str, Any]]  # of the Trainer
