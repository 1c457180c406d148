"""Recipe: what a run is made of besides the Trainer's arguments, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pneumonia_hf.cli import check_names, parse_recipe
from pneumonia_hf.data.load import DataConfig
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import expand
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.training.augment import AugmentConfig

# By name: importing it takes seconds.
ARGUMENTS = "pneumonia_hf.training.arguments:XrayTrainingArguments"


@dataclass(frozen=True)
class Recipe:
    """What a run is made of besides the Trainer's arguments."""

    data: DataConfig
    model: ModelConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def parse_run(*more: str, arguments: Sequence[str] | None = None) -> tuple:
    """Return a Recipe, XrayTrainingArguments and one object for each of `more`.

    Unknown flags and keys, and recipes and data folders that do not exist, are reported within a
    second: neither torch nor transformers is imported before.

    Args:
        more: further dataclasses, as MODULE:CLASS.
        arguments: the command line; by default that of the process.

    Raises:
        UserError: as `parse_recipe`; a data folder does not exist.
    """
    kinds = [DataConfig, ModelConfig, AugmentConfig, ARGUMENTS, *more]
    sources = check_names(kinds, arguments).get("data_dir") or []
    for text in [sources] if isinstance(sources, str) else sources:
        source = parse_source(str(text))
        if source.kind == "folder" and not expand(source.where).exists():
            raise UserError(f"The data folder {source.where} does not exist; check --data_dir.")
    data, model, augment, training, *others = parse_recipe(kinds, arguments)
    return (Recipe(data, model, augment), training, *others)
