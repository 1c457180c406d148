"""Fine-tune a model on a folder of X-rays.

accelerate launch train_scripts/train.py --config train_scripts/configs/dinov2-small.yaml \
    --data_dir DATA --output_dir runs/NAME
"""

from pneumonia_hf.cli import parse_recipe, run_script


def main() -> None:
    """Read recipe and flags, train, and say what came out."""
    from pneumonia_hf.data.load import DataConfig
    from pneumonia_hf.models.build import ModelConfig
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.augment import AugmentConfig
    from pneumonia_hf.training.recipe import Recipe
    from pneumonia_hf.training.runs import run_recipe

    data, model, augment, arguments = parse_recipe(
        [DataConfig, ModelConfig, AugmentConfig, XrayTrainingArguments]
    )
    folder = run_recipe(Recipe(data, model, augment), arguments)
    if arguments.process_index == 0:
        if arguments.seeds is None:
            print(f"The saved model is in {folder}; its card is {folder / 'README.md'}.")
        else:
            print(f"The saved ensemble is in {folder}; its numbers are in seeds.md.")


if __name__ == "__main__":
    run_script(main)
