"""Fine-tune a model on a folder of X-rays.

accelerate launch train_scripts/train.py --config train_scripts/configs/dinov2-small.yaml \
    --data_dir DATA --output_dir runs/NAME
"""

from pneumonia_hf.cli import run_script


def main() -> None:
    """Read recipe and flags, train, and print where the model is."""
    from pneumonia_hf.training.recipe import parse_run

    recipe, arguments = parse_run()

    from pneumonia_hf.training.runs import run_recipe  # imports torch

    folder = run_recipe(recipe, arguments)
    if arguments.process_index == 0:
        if arguments.seeds is None:
            print(f"The saved model is in {folder}; its card is {folder / 'README.md'}.")
        else:
            print(f"The saved ensemble is in {folder}; its numbers are in seeds.md.")


if __name__ == "__main__":
    run_script(main)
