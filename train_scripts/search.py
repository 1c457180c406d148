"""Search for the hyper-parameters of a recipe, by whole runs compared on the validation split.

python train_scripts/search.py --config train_scripts/configs/dinov2-small.yaml \
    --ranges train_scripts/configs/search.yaml --data_dir DATA --output_dir runs/search
"""

import os
from pathlib import Path

from pneumonia_hf.cli import parse_recipe, run_script


def main() -> None:
    """Read recipe, ranges and flags, search, and print where the results are."""
    from pneumonia_hf.data.load import DataConfig
    from pneumonia_hf.models.build import ModelConfig
    from pneumonia_hf.search.study import SearchConfig, search_recipe
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.augment import AugmentConfig
    from pneumonia_hf.training.recipe import Recipe

    os.environ.setdefault("MPLBACKEND", "agg")  # a lost display must not end a search
    search, data, model, augment, arguments = parse_recipe(
        [SearchConfig, DataConfig, ModelConfig, AugmentConfig, XrayTrainingArguments]
    )
    folder = search_recipe(Recipe(data, model, augment), arguments, search)
    output = Path(arguments.output_dir)
    print(f"The best model is in {folder}; its recipe is {output / 'best.yaml'}.")
    print(f"All trials are in {output / 'search.md'}.")


if __name__ == "__main__":
    run_script(main)
