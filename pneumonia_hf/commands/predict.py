"""Score X-rays (files, folders, or a dataset) into a table.

pneumonia-hf predict --model runs/NAME --input FILE_OR_FOLDER ... --output out.csv

With `accelerate launch train_scripts/predict.py` several processes share the work.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.cli import (
    EXIT_FAULT,
    add_positive_label,
    check_inputs,
    make_parser,
)

if TYPE_CHECKING:
    from pneumonia_hf.inference.predictor import Predictor


def main() -> int:
    """Write a row for every input; return exit status 2 if one of them cannot be read.

    With several processes it is 0 then.
    """
    parser = make_parser(__doc__)
    parser.add_argument(
        "--model",
        nargs="+",
        help="Model folder, or Hub id with @revision; several form an ensemble; default: the one "
        "included.",
    )
    add_positive_label(parser)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="Image files or folders; or hub:OWNER/NAME and shards:PATH_OR_URL, to stream.",
    )
    parser.add_argument(
        "--output", required=True, help="CSV or .parquet file to write; - prints CSV."
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="Keep results in OUTPUT.parts until all are there: an interrupted run goes on. So it "
        "is with several processes, streams and .parquet.",
    )
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

    from pneumonia_hf.data.image_stream import STREAMS
    from pneumonia_hf.inference.batch import check_output_file, find_inputs, write_predictions
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    check_output_file(options.output, options.overwrite)
    streams = [one for one in options.input if one.startswith(STREAMS)]
    files = [one for one in options.input if one not in streams]
    paths = find_inputs(files) if files else []
    options.model = options.model or [DEFAULT_MODEL]
    check_inputs(options.model)
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if launched or streams or options.parts or options.output.endswith(".parquet"):
        return _predict_in_parts(options, paths, streams)
    predictor = _load(options)
    failed = write_predictions(predictor, paths, options.output)
    if failed:
        print(f"{failed} of {len(paths)} files could not be read; see their rows.", file=sys.stderr)
    return EXIT_FAULT if failed else 0


def _load(options: argparse.Namespace, device: str | None = None) -> Predictor:
    from pneumonia_hf.inference.predictor import Predictor

    return Predictor.from_pretrained(
        options.model,
        device=device,
        tta=options.tta,
        positive_label=options.positive_label,
        backend=options.backend,
    )


def _predict_in_parts(options: argparse.Namespace, paths: list[Path], streams: list[str]) -> int:
    """Score with all processes of the launcher; the main one merges and prints the counts."""
    from pneumonia_hf.data.image_stream import identify_stream, stream_images
    from pneumonia_hf.distributed import broadcast_from_main, start_scoring
    from pneumonia_hf.errors import UserError
    from pneumonia_hf.evaluation.scores import identify_model
    from pneumonia_hf.inference.parts import merge_parts, prepare_parts, score_parts
    from pneumonia_hf.inference.score_check import explain_score_misfit

    if options.output == "-":
        raise UserError("Parts are kept beside the table; give --output a file.")
    state = start_scoring()
    predictor = _load(options, state and str(state.device))
    folder = Path(f"{options.output}.parts")
    identity = [*identify_model(predictor), *map(str, paths), *map(identify_stream, streams)]
    several = len(streams) > 1
    streamed = (
        (f"{source}/{name}" if several else name, image)
        for source in streams
        for name, image in stream_images(source)
    )
    images = chain(((None, path) for path in paths), streamed)
    if state is None:
        prepare_parts(folder, identity)
        count = score_parts(predictor, images, folder)
    else:
        broadcast_from_main(prepare_parts, folder, identity)
        count = score_parts(predictor, images, folder, state.process_index, state.num_processes)
        state.wait_for_everyone()
        if not state.is_main_process:
            return 0
    decisions, probabilities = merge_parts(folder, Path(options.output), count)
    failed = decisions.pop(None, 0)
    counts = ", ".join(f"{n} {name}" for name, n in decisions.most_common())
    images = f"{count} image{'s' * (count != 1)}"
    print(f"{images}: {counts or 'none scored'}, {failed} that could not be read.")
    if misfit := explain_score_misfit(predictor, probabilities):
        print(misfit, file=sys.stderr)
    # A launcher takes another status for a crash, and prints a traceback.
    return EXIT_FAULT if failed and state is None else 0
