"""Ranges of hyper-parameters: a YAML file -> Optuna distributions -> a recipe with values."""

from __future__ import annotations

import math
from argparse import Action, ArgumentTypeError
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pneumonia_hf.cli import read_yaml, similar
from pneumonia_hf.compat.argparse import list_flags
from pneumonia_hf.errors import UserError
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.augment import AugmentConfig
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run_state import FREE

# Not searchable: it does not change the weights, or it changes what is compared.
FIXED = FREE | {
    "seed", "data_seed", "metric_for_best_model", "greater_is_better", "load_best_model_at_end",
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "required_sensitivity",
    "save_strategy", "save_steps", "push_to_hub", "resume_from_checkpoint", "parallelism_config",
}  # fmt: skip
WHY_FIXED = ": it would change what is compared, or nothing at all"


def read_ranges(
    path: Path, recipe: Recipe, arguments: XrayTrainingArguments
) -> dict[str, BaseDistribution]:
    """Return the distribution of each hyper-parameter in a YAML file, by its name.

    Raises:
        UserError: no such file, an unknown name, a range that is ill-formed or ends where the
            recipe refuses it.
    """
    lines = read_yaml(path, "file of ranges", "--ranges")
    if not lines:
        raise UserError(f"{path} must hold lines such as `learning_rate: [1.0e-5, 1.0e-3, log]`.")
    ranges = {}
    for name, entry in lines.items():
        if name not in _flags():
            why = WHY_FIXED if name in FIXED else similar(str(name), {*_flags()})
            raise UserError(f"{path} names {name!r}, which cannot be searched{why}.")
        try:
            ranges[name] = one = _read_range(entry, _flags()[name])
            is_choice = isinstance(one, CategoricalDistribution)
            for value in one.choices if is_choice else (one.low, one.high):
                apply_values({name: value}, recipe, arguments)
        except UserError as error:
            raise UserError(f"{path} has {name}: {error}") from error
    has_phases = arguments.phases is not None
    if "phases" in ranges:
        has_phases = None not in ranges["phases"].choices
    idle = sorted({"learning_rate", "num_train_epochs", "trainable_layer_groups"} & set(ranges))
    if has_phases and idle:
        raise UserError(f"The phases set {' and '.join(idle)}; leave that out of the ranges.")
    return dict(sorted(ranges.items()))  # the order of lines must not change what is sampled


def apply_values(
    values: dict[str, Any], recipe: Recipe, arguments: XrayTrainingArguments, **others: Any
) -> tuple[Recipe, XrayTrainingArguments]:
    """Return recipe and arguments with these hyper-parameters, and `others` in the arguments.

    Raises:
        UserError: a value that the recipe refuses.
    """
    values = {
        name: value.split() if value is not None and _flags()[name].nargs == "+" else value
        for name, value in values.items()
    }

    def of(kind: type) -> dict[str, Any]:
        return {one.name: values[one.name] for one in fields(kind) if one.name in values}

    model = replace(recipe.model, **of(ModelConfig))
    recipe = replace(recipe, model=model, augment=replace(recipe.augment, **of(AugmentConfig)))
    others = {"bf16": False, "fp16": False} | others  # they follow from `precision`
    try:
        return recipe, replace(arguments, **of(XrayTrainingArguments), **others)
    except ValueError as error:  # transformers' own checks
        raise UserError(" ".join(str(error).split())) from error


@cache
def _flags() -> dict[str, Action]:
    """Return the command-line flag of each hyper-parameter that can be searched, by its name."""
    from transformers import HfArgumentParser

    found = {}
    parser = HfArgumentParser([ModelConfig, AugmentConfig, XrayTrainingArguments], add_help=False)
    for flag in list_flags(parser):
        if flag.dest not in FIXED and not flag.dest.startswith("hub_"):
            found.setdefault(flag.dest, flag)  # the second one of a name is its --no_ form
    return found


def _read_range(entry: Any, flag: Action) -> BaseDistribution:
    if isinstance(entry, dict) and set(entry) == {"choices"} and isinstance(entry["choices"], list):
        if len(entry["choices"]) < 2:
            raise UserError("give two choices or more.")
        return CategoricalDistribution([_convert(one, flag) for one in entry["choices"]])
    if not isinstance(entry, list) or not (len(entry) == 2 or entry[2:] == ["log"]):
        raise UserError(f"{entry!r} is not [low, high], [low, high, log] or {{choices: [...]}}.")
    if flag.type not in (int, float) or None in entry:
        raise UserError(f"{entry!r} is not a range of numbers; give {{choices: [...]}}.")
    distribution = IntDistribution if flag.type is int else FloatDistribution
    low, high = (_convert(one, flag) for one in entry[:2])
    try:
        return distribution(low, high, log=len(entry) == 3)
    except ValueError as error:  # low above high, or a logarithm of 0
        raise UserError(f"{error}") from error


def _convert(value: Any, flag: Action) -> Any:
    """Return a value of a range in the type of its flag; a list as text separated by spaces."""
    if value is None and flag.default is None:
        return None
    if isinstance(value, list) and flag.nargs == "+":
        return " ".join(map(str, value))
    try:
        converted = flag.type(str(value))  # as text: YAML reads 1e-5, without a point, as text
        if isinstance(converted, float) and not math.isfinite(converted):
            raise ValueError
    except (ValueError, TypeError, ArgumentTypeError) as error:
        kind = {int: "a whole number", float: "a number"}.get(flag.type, "a value of this type")
        raise UserError(f"{value!r} is not {kind}.") from error
    return converted
