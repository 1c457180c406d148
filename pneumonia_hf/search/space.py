"""Ranges of hyper-parameters: a YAML file -> what each is drawn from, and a recipe with values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pneumonia_hf.cli import OLD_NAMES
from pneumonia_hf.errors import UserError
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.augment import AugmentConfig
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run_record import FREE

# What a search may not vary: it does not change the weights, or it changes what is compared.
FIXED = FREE | {
    "seed", "data_seed", "metric_for_best_model", "greater_is_better", "load_best_model_at_end",
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "required_sensitivity",
    "save_strategy", "save_steps", "push_to_hub", "resume_from_checkpoint", "mixed_precision",
}  # fmt: skip
NAMES = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    list: "list",
}


def read_ranges(
    path: Path, recipe: Recipe, arguments: XrayTrainingArguments
) -> dict[str, BaseDistribution]:
    """Return what each hyper-parameter in a file of ranges is drawn from, by its name.

    Raises:
        UserError: no such file, an unknown name, a range that is ill-formed, or one whose ends
            the recipe would not take.
    """
    import yaml

    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"The ranges {path} do not exist; check --ranges.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a YAML file that can be read: {reason}.") from error
    if not isinstance(lines, dict) or not lines:
        raise UserError(f"{path} must hold lines such as `learning_rate: [1.0e-5, 1.0e-3, log]`.")
    ranges = {}
    for name, entry in lines.items():
        name = OLD_NAMES.get(name, name)
        if name not in _searchable():
            raise UserError(f"{path} names {name!r}, which cannot be searched{_similar(name)}")
        try:
            ranges[name] = _read_range(entry, *_searchable()[name])
            for value in _extremes(ranges[name]):
                apply_values({name: value}, recipe, arguments)
        except UserError as error:
            raise UserError(f"{path} has {name}: {error}") from error
    _check_effect(ranges, arguments)
    return dict(sorted(ranges.items()))  # what is drawn must not depend on the order of lines


def apply_values(
    values: dict[str, Any], recipe: Recipe, arguments: XrayTrainingArguments, **others: Any
) -> tuple[Recipe, XrayTrainingArguments]:
    """Return recipe and arguments with these hyper-parameters, by name.

    Args:
        values: as drawn from the ranges.
        recipe, arguments: of the search.
        others: further changes to the arguments, such as `output_dir`.

    Raises:
        UserError: a value that the recipe does not take.
    """
    values = {
        name: value.split() if value is not None and _searchable()[name][0] is list else value
        for name, value in values.items()
    }

    def of(kind: type) -> dict[str, Any]:
        return {one.name: values[one.name] for one in fields(kind) if one.name in values}

    recipe = replace(
        recipe,
        model=replace(recipe.model, **of(ModelConfig)),
        augment=replace(recipe.augment, **of(AugmentConfig)),
    )
    others = {"bf16": False, "fp16": False} | others  # they follow from `precision`
    try:
        return recipe, replace(arguments, **of(XrayTrainingArguments), **others)
    except ValueError as error:  # transformers' own checks
        raise UserError(" ".join(str(error).split())) from error


def _check_effect(ranges: dict[str, BaseDistribution], arguments: XrayTrainingArguments) -> None:
    """Raise a UserError if what is searched has no effect beside the phases."""
    searched = ranges.get("phases")
    are_there = None not in searched.choices if searched else arguments.phases is not None
    idle = sorted({"learning_rate", "num_train_epochs", "trainable_layer_groups"} & set(ranges))
    if are_there and idle:
        raise UserError(f"The phases tell {' and '.join(idle)}; leave that out of the ranges.")


@cache
def _searchable() -> dict[str, tuple[type, bool]]:
    """Return the type of each hyper-parameter, and whether it may be null, by its name."""
    found = {}
    for kind in (ModelConfig, AugmentConfig, XrayTrainingArguments):
        hints = get_type_hints(kind)
        for one in fields(kind):
            hint = hints[one.name]
            splits = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            plain = {get_origin(split) or split for split in splits}
            types = [able for able in (list, float, int, bool, str) if able in plain]
            if one.init and types and not one.name.startswith("hub_"):
                found[one.name] = types[0], NoneType in plain
    return {name: kind for name, kind in found.items() if name not in FIXED}


def _similar(name: str) -> str:
    if name in FIXED:
        return ": it would change what is compared, or nothing at all."
    close = get_close_matches(str(name), _searchable(), n=1)
    return f"; did you mean {close[0]}?" if close else "; give names as they stand in a recipe."


def _read_range(entry: Any, kind: type, may_be_null: bool) -> BaseDistribution:
    if isinstance(entry, dict) and set(entry) == {"choices"} and isinstance(entry["choices"], list):
        if len(entry["choices"]) < 2:
            raise UserError("give two choices or more.")
        return CategoricalDistribution(
            [_convert(one, kind, may_be_null) for one in entry["choices"]]
        )
    if not isinstance(entry, list) or not (len(entry) == 2 or entry[2:] == ["log"]):
        raise UserError(f"{entry!r} is not [low, high], [low, high, log] or {{choices: [...]}}.")
    if kind not in (int, float):
        raise UserError("it is no number; give {choices: [...]}.")
    low, high = (_convert(one, kind, may_be_null=False) for one in entry[:2])
    if not low < high:
        raise UserError(f"low is {low} and high is {high}; give the lower one first.")
    if len(entry) == 3 and low <= 0:
        raise UserError(f"low is {low}; a range in log begins above 0.")
    drawn_from = IntDistribution if kind is int else FloatDistribution
    return drawn_from(low, high, log=len(entry) == 3)


def _convert(value: Any, kind: type, may_be_null: bool) -> Any:
    """Return a value of a range in the type of its field; a list as text with blanks between."""
    try:
        if value is None and may_be_null:
            return None
        if kind is bool or isinstance(value, bool):
            if kind is not bool or not isinstance(value, bool):
                raise ValueError
            return value
        if kind is list:
            return " ".join(map(str, value)) if isinstance(value, list) else str(value)
        if value is None or isinstance(value, list | dict):
            raise ValueError
        number = kind(str(value))  # YAML takes 1e-5, which has no point, for text
        if kind is float and not math.isfinite(number):
            raise ValueError
        return number
    except ValueError as error:
        raise UserError(f"{value!r} is no {NAMES[kind]}.") from error


def _extremes(drawn_from: BaseDistribution) -> Sequence[Any]:
    if isinstance(drawn_from, CategoricalDistribution):
        return drawn_from.choices
    return drawn_from.low, drawn_from.high
