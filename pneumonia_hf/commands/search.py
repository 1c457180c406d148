"""Search for the hyper-parameters of a recipe, by whole runs compared on the validation split.

pneumonia-hf search --config train_scripts/configs/dinov2-small.yaml \
    --ranges train_scripts/configs/search.yaml --data_dir DATA --output_dir runs/search
"""

from __future__ import annotations

import os
from pathlib import Path


def main() -> None:
    """Read recipe, ranges and flags, search, and print where the results are."""
    from pneumonia_hf.search.study import SearchConfig, search_recipe
    from pneumonia_hf.training.recipe import parse_run

    recipe, arguments, search = parse_run(SearchConfig, description=__doc__)

    os.environ.setdefault("MPLBACKEND", "agg")  # a lost display must not end a search
    folder = search_recipe(recipe, arguments, search)
    output = Path(arguments.output_dir)
    print(f"The best model is in {folder}; its recipe is {output / 'best.yaml'}.")
    print(f"All trials are in {output / 'search.md'}.")
