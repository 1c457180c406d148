"""Fine-tune a model on a folder of X-rays.

pneumonia-hf train --config train_scripts/configs/dinov2-small.yaml \
    --data_dir DATA --output_dir runs/NAME
"""

from __future__ import annotations


def main() -> None:
    """Read recipe and flags, train, and print where the model is."""
    from pneumonia_hf.hub import check_login
    from pneumonia_hf.training.recipe import parse_run

    recipe, arguments = parse_run(description=__doc__)

    from pneumonia_hf.training.train import run_recipe  # imports torch

    if arguments.push_to_hub:
        check_login(arguments.hub_model_id)  # now, and not when hours of training have ended
    folder = run_recipe(recipe, arguments)
    if arguments.process_index == 0:
        if arguments.seeds is None:
            print(f"The saved model is in {folder}; its card is {folder / 'README.md'}.")
        else:
            print(f"The saved ensemble is in {folder}; its numbers are in seeds.md.")
        if arguments.push_to_hub:
            from pneumonia_hf.publish.push import push_and_tell

            push_and_tell(folder, arguments.hub_model_id, arguments.hub_private_repo is not False)
