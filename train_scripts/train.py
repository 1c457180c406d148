"""Fine-tune a model on a folder of X-rays.

accelerate launch train_scripts/train.py --config train_scripts/configs/dinov2-small.yaml \
    --data_dir DATA --output_dir runs/NAME
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pneumonia_hf.console import parse_recipe, run_script


def main() -> None:
    """Read recipe and flags, train, and say what came out."""
    from transformers import set_seed

    from pneumonia_hf.augment import AugmentConfig
    from pneumonia_hf.backbones import ModelConfig, build_model
    from pneumonia_hf.data import DataConfig, load_xrays
    from pneumonia_hf.finishing import Recipe
    from pneumonia_hf.training import XrayTrainingArguments, check_output_folder, train

    data_config, model_config, augment_config, arguments = parse_recipe(
        [DataConfig, ModelConfig, AugmentConfig, XrayTrainingArguments]
    )
    check_output_folder(arguments)
    data = load_xrays(data_config)
    set_seed(arguments.seed)
    model, processor = build_model(model_config)
    recipe = Recipe(data_config, model_config, augment_config)
    folder = train(model, processor, data, recipe, arguments)
    if arguments.process_index == 0:
        print(f"The finished model is in {folder}; its card is {folder / 'README.md'}.")


if __name__ == "__main__":
    run_script(main)
