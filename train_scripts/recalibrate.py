"""Calibrate a saved model anew, on the validation images that it was chosen on.

python train_scripts/recalibrate.py --model runs/NAME --data_dir DATA

For models that an earlier version finished. Temperature, threshold, range of referral and the
scale of attribution maps are found as training finds them now; the weights below the head stay.
Reports in the model's card are removed: measure it again with evaluate_model.py --add_to_card.
"""

from pathlib import Path

from pneumonia_hf.cli import make_parser, run_script


def main() -> None:
    """Find the model's own validation images in the data, and calibrate it on them."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Folder of a saved model.")
    parser.add_argument(
        "--data_dir",
        nargs="+",
        required=True,
        help="The sources that it was trained on, each [NAME=][KIND:]WHERE.",
    )
    options = parser.parse_args()

    from pneumonia_hf.evaluation.recalibrate import find_validation, recalibrate

    validation = find_validation(options.model, options.data_dir)
    found = recalibrate(options.model, validation)["config"]
    print(
        f"Calibrated on {len(validation)} validation images: temperature "
        f"{found['temperature']:.4f}, pneumonia at or above {found['threshold']:.4f}, referred "
        f"from {found['refer_low']:.4f} to {found['refer_high']:.4f}."
    )


if __name__ == "__main__":
    run_script(main)
