"""Fine-tune a model on a folder of X-rays.

pneumonia-hf train --config train_scripts/configs/dinov2-small.yaml \
    --data_dir DATA --output_dir runs/NAME
"""

from __future__ import annotations


def main() -> None:
    """Read recipe and flags, train, and print where the model is."""
    from pneumonia_hf.training.recipe import parse_run

    recipe, arguments = parse_run(description=__doc__)

    from pneumonia_hf.training.train import run_recipe  # imports torch

    folder = run_recipe(recipe, arguments)
    if arguments.process_index == 0:
        if arguments.seeds is None:
            print(f"The saved model is in {folder}; its card is {folder / 'README.md'}.")
        else:
            print(f"The saved ensemble is in {folder}; its numbers are in seeds.md.")
