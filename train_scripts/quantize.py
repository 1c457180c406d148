"""Let a saved model score with 8-bit integers, several times as fast on a CPU.

python train_scripts/quantize.py --model runs/NAME --data_dir DATA

Measures the ranges of its activations on some of its own training images, and what int8 changes on
its validation images. If AUROC falls by 0.002 or more, nothing is written. Afterwards
predict.py --backend int8 can be used.
"""

from pathlib import Path

from pneumonia_hf.cli import check_inputs, make_parser, run_script


def main() -> None:
    """Measure the ranges and print what int8 changes."""
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
    from pneumonia_hf.models.model_folder import QUANTIZATION_FILE, check_model_folder

    check_model_folder(options.model)
    sources = [parse_source(one) for one in options.data_dir]
    check_inputs(data_folders=[one.where for one in sources if one.is_folder])

    from pneumonia_hf.evaluation.quantize import quantize
    from pneumonia_hf.evaluation.recalibrate import find_own_splits

    cost = quantize(options.model, *find_own_splits(options.model, options.data_dir))
    print(
        f"Wrote {options.model / QUANTIZATION_FILE}. On {cost.images} validation images int8 has "
        f"AUROC {cost.auroc_int8:.4f} instead of {cost.auroc:.4f}; probabilities change by "
        f"{cost.mean_change:.4f} on average and {cost.largest_change:.3f} at most, "
        f"{cost.decisions_changed} decisions change."
    )


if __name__ == "__main__":
    run_script(main)
