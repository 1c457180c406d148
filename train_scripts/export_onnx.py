"""Write a saved model as one ONNX file, checked against the model itself.

python train_scripts/export_onnx.py --model runs/NAME --output model.onnx
"""

from pathlib import Path

from pneumonia_hf.cli import make_parser, run_script


def main() -> None:
    """Export the model and print where it is now."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="Model folder, or Hub id with @revision; else the default.")
    parser.add_argument("--output", type=Path, required=True, help="The .onnx file to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an older file.")
    options = parser.parse_args()

    from pneumonia_hf.inference.onnx_export import export_onnx
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    predictor = Predictor.from_pretrained(options.model or DEFAULT_MODEL)
    path = export_onnx(predictor, options.output, options.overwrite)
    megabytes = path.stat().st_size / 1e6
    print(f"The network is in {path} ({megabytes:.1f} MB); its logits are those of the model.")


if __name__ == "__main__":
    run_script(main)
