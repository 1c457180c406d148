"""Recipe: what a run is made of, beside the Trainer's arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from pneumonia_hf.data.load import DataConfig
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.training.augment import AugmentConfig


@dataclass(frozen=True)
class Recipe:
    """What a run is made of, beside the Trainer's arguments."""

    data: DataConfig
    model: ModelConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
