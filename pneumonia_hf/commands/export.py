"""Export a saved model as one ONNX file, and check it against the model.

pneumonia-hf export --model runs/NAME --output model.onnx
"""

from __future__ import annotations

from pathlib import Path

from pneumonia_hf.cli import add_positive_label, check_inputs, make_parser


def main() -> None:
    """Export the model and print the path of the file."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="Model folder or Hub id; default: the one included.")
    add_positive_label(parser)
    parser.add_argument("--output", type=Path, required=True, help="The .onnx file to write.")
    parser.add_argument(
        "--with_preprocessing",
        action="store_true",
        help="The file takes gray images as uint8, and returns probabilities.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an older file.")
    options = parser.parse_args()

    from pneumonia_hf.inference.onnx_export import check_output, export_onnx
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    model = options.model or DEFAULT_MODEL
    check_inputs([model])
    check_output(options.output, options.overwrite)
    predictor = Predictor.from_pretrained(model, positive_label=options.positive_label)
    whole = options.with_preprocessing
    path = export_onnx(predictor, options.output, options.overwrite, whole)
    megabytes, what = path.stat().st_size / 1e6, "probabilities" if whole else "logits"
    print(f"Exported to {path} ({megabytes:.1f} MB); its {what} match those of the model.")
