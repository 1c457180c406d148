"""A recipe -> a saved model, or one for each of several seeds and their ensemble."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback, set_seed

from pneumonia_hf.data.load import load_xrays
from pneumonia_hf.files import read_json
from pneumonia_hf.models.build import build_model
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, MODEL_FILES, RUN_FILE
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.distributed import barrier, broadcast_from_main
from pneumonia_hf.training.run_record import check_output_folder, clear
from pneumonia_hf.training.train import train

if TYPE_CHECKING:
    from pneumonia_hf.data.table import XrayData
    from pneumonia_hf.training.recipe import Recipe


def run_recipe(
    recipe: Recipe, arguments: XrayTrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Load the data, train, and return the folder of what came out.

    With `arguments.seeds` it is an ensemble: a saved model for each seed in `seed-N/`, and
    beside them how far their numbers differ. Which images belong to which part does not change
    with the seed.

    Raises:
        UserError: as `train`, `load_xrays` and `build_model` raise it.
    """
    broadcast_from_main(arguments, lambda: check_output_folder(arguments))
    data = load_xrays(recipe.data)
    if arguments.seeds is None:
        return _train_once(data, recipe, arguments, callbacks)
    return _train_seeds(data, recipe, arguments, callbacks)


def _train_seeds(
    data: XrayData,
    recipe: Recipe,
    arguments: XrayTrainingArguments,
    callbacks: Sequence[TrainerCallback],
) -> Path:
    from pneumonia_hf.training.seeds import SEEDS_FILE, SEEDS_TABLE, summarise_seeds

    folder = Path(arguments.output_dir)
    is_main = arguments.process_index == 0
    if arguments.overwrite and is_main:
        # What speaks of other members; and a single model, by its config first.
        for name in ("config.json", ENSEMBLE_FILE, SEEDS_FILE, SEEDS_TABLE, *MODEL_FILES):
            (folder / name).unlink(missing_ok=True)
        clear(folder)
    members = []
    for seed in arguments.seeds:
        of_seed = copy.copy(arguments)
        of_seed.seed, of_seed.output_dir = seed, str(folder / f"seed-{seed}")
        of_seed.run_name = f"{arguments.run_name or folder.resolve().name}-seed-{seed}"
        if is_main:
            print(f"Seed {seed}, {len(members) + 1} of {len(arguments.seeds)}.", flush=True)
        members.append(_train_once(data, recipe, of_seed, callbacks))
    if is_main and not _is_summarised(folder, members):
        summarise_seeds(folder, members, data["validation"], arguments.required_sensitivity)
    barrier(arguments)
    return folder


def _is_summarised(folder: Path, members: Sequence[Path]) -> bool:
    """Return whether the ensemble in `folder` is of these members, and newer than each."""
    made = folder / ENSEMBLE_FILE
    named = (read_json(made, otherwise=None) or {}).get("members")
    return named == [member.name for member in members] and all(
        (member / RUN_FILE).stat().st_mtime_ns < made.stat().st_mtime_ns for member in members
    )


def _train_once(
    data: XrayData,
    recipe: Recipe,
    arguments: XrayTrainingArguments,
    callbacks: Sequence[TrainerCallback],
) -> Path:
    set_seed(arguments.seed)  # of the head
    model, processor = build_model(recipe.model)
    return train(model, processor, data, recipe, arguments, callbacks)
