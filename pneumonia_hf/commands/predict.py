"""Score X-rays (files or folders) into a CSV table.

pneumonia-hf predict --model runs/NAME --input FILE_OR_FOLDER ... --output out.csv
"""

from __future__ import annotations

import sys

from pneumonia_hf.cli import (
    EXIT_FAULT,
    add_positive_label,
    check_inputs,
    make_parser,
)


def main() -> int:
    """Write a row for every input; return exit status 2 if one of them cannot be read."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--model",
        nargs="+",
        help="Model folder, or Hub id with @revision; several form an ensemble; default: the one "
        "included.",
    )
    add_positive_label(parser)
    parser.add_argument("--input", nargs="+", required=True, help="Image files or folders.")
    parser.add_argument("--output", required=True, help="CSV file to write; - prints it.")
    parser.add_argument(
        "--tta", action="store_true", help="Average over five views of each image: slower."
    )
    parser.add_argument(
        "--backend",
        choices=("torch", "onnx", "openvino", "auto", "int8"),
        default="torch",
        help="What computes: onnx and openvino are faster on a CPU, from some hundred images on; "
        "auto takes the quickest that is installed. int8 is the fastest and changes probabilities "
        "a little; the model needs quantize.py first.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an older table.")
    options = parser.parse_args()

    from pneumonia_hf.inference.batch import check_output_file, find_inputs, write_predictions
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    check_output_file(options.output, options.overwrite)
    paths = find_inputs(options.input)
    models = options.model or [DEFAULT_MODEL]
    check_inputs(models)
    predictor = Predictor.from_pretrained(
        models, tta=options.tta, positive_label=options.positive_label, backend=options.backend
    )
    failed = write_predictions(predictor, paths, options.output)
    if failed:
        print(f"{failed} of {len(paths)} files could not be read; see their rows.", file=sys.stderr)
    return EXIT_FAULT if failed else 0
