"""Recalibrate a saved model on its own validation images.

python train_scripts/recalibrate.py --model runs/NAME --data_dir DATA

For models of an earlier version. Temperature, threshold, REFER range, the references of
attribution maps and the input gate become those that training finds now; the weights below the
head stay. Reports in the model's card are removed: evaluate the model again with
evaluate_model.py --add_to_card.
"""

from pathlib import Path

from pneumonia_hf.cli import check_inputs, make_parser, run_script


def main() -> None:
    """Find the model's own validation images in the data, and calibrate the model on them."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Folder of a saved model.")
    parser.add_argument(
        "--data_dir",
        nargs="+",
        required=True,
        help="The sources of its training data, each [NAME=][KIND:]WHERE.",
    )
    options = parser.parse_args()

    from pneumonia_hf.data.sources import parse_source
    from pneumonia_hf.models.model_folder import check_model_folder

    check_model_folder(options.model)
    sources = [parse_source(one) for one in options.data_dir]
    check_inputs(data_folders=[one.where for one in sources if one.is_folder])

    from pneumonia_hf.evaluation.recalibrate import find_own_splits, recalibrate

    train, validation = find_own_splits(options.model, options.data_dir)
    found = recalibrate(options.model, train, validation)["config"]
    print(
        f"Calibrated on {len(validation)} validation images: temperature "
        f"{found['temperature']:.4f}, positive at or above {found['threshold']:.4f}, referred "
        f"from {found['refer_low']:.4f} to {found['refer_high']:.4f}."
    )


if __name__ == "__main__":
    run_script(main)
