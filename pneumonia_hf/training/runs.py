"""run_recipe: a recipe -> a saved model, or one for each of several seeds and their ensemble."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback, set_seed

from pneumonia_hf.data.load import load_xrays
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.files import read_json
from pneumonia_hf.models.build import build_model
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, MODEL_FILES, RUN_FILE
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.distributed import barrier, broadcast_from_main
from pneumonia_hf.training.run_record import check_output_folder, clear
from pneumonia_hf.training.seeds import SEEDS_FILE, SEEDS_TABLE, summarise_seeds
from pneumonia_hf.training.train import train

if TYPE_CHECKING:
    from pneumonia_hf.training.recipe import Recipe


def run_recipe(
    recipe: Recipe, arguments: XrayTrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Load the data, train, and return the folder of the saved model.

    With `arguments.seeds` it is an ensemble: a saved model for each seed in `seed-N/`, and the
    spread of their metrics. The splits do not depend on the seed.

    Raises:
        UserError: as `train`, `load_xrays` and `build_model`.
    """
    broadcast_from_main(arguments, lambda: check_output_folder(arguments))
    data = load_xrays(recipe.data)

    def train_once(arguments: XrayTrainingArguments) -> Path:
        set_seed(arguments.seed)  # of the head
        model, processor = build_model(recipe.model)
        return train(model, processor, data, recipe, arguments, callbacks)

    if arguments.seeds is None:
        return train_once(arguments)
    folder = Path(arguments.output_dir)
    is_main = arguments.process_index == 0
    if arguments.overwrite and is_main:
        # The files of an ensemble of other members, or of a single model; config.json first.
        for name in ("config.json", ENSEMBLE_FILE, SEEDS_FILE, SEEDS_TABLE, *MODEL_FILES):
            (folder / name).unlink(missing_ok=True)
        clear(folder)
    members = []
    for number, seed in enumerate(arguments.seeds, start=1):
        of_seed = copy.copy(arguments)
        of_seed.seed, of_seed.output_dir = seed, str(folder / f"seed-{seed}")
        of_seed.run_name = f"{arguments.run_name or folder.resolve().name}-seed-{seed}"
        if is_main:
            print(f"Seed {seed}, {number} of {len(arguments.seeds)}.", flush=True)
        members.append(train_once(of_seed))
    if is_main and not _is_summarised(folder, members):
        with cache_in(recipe.data.cache_dir):
            summarise_seeds(
                folder,
                members,
                data["validation"],
                arguments.required_sensitivity,
                resamples=arguments.bootstrap_resamples,
                threshold_resamples=arguments.threshold_resamples,
            )
    barrier(arguments)
    return folder


def _is_summarised(folder: Path, members: Sequence[Path]) -> bool:
    """Return whether `folder` holds an ensemble of these members that is newer than each."""
    made = folder / ENSEMBLE_FILE
    named = (read_json(made, otherwise=None) or {}).get("members")
    return named == [member.name for member in members] and all(
        (member / RUN_FILE).stat().st_mtime_ns < made.stat().st_mtime_ns for member in members
    )
