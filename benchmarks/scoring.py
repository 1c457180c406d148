"""Measure how fast files are scored, against a plain transformers pipeline on the same files.

python benchmarks/scoring.py --data_dir DATA [--full_size FULL_SIZE_DATA] [--images 128]

Files are read, preprocessed and scored by `Predictor.predict_files` with each backend that is
installed, and by `pipeline("image-classification")` in batches of each size. All take turns,
and the fastest round of each counts. The model is the default one.
"""

import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from _shared import describe_machine

from pneumonia_hf.cli import make_parser, run_script

BATCHES = (1, 8, 32)  # of the pipeline


def main() -> None:
    """Measure each source and print a table."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", required=True, help="Folder with small images.")
    parser.add_argument("--full_size", help="Folder with images of full size.")
    parser.add_argument("--images", type=int, default=128, help="Files of each, repeated if fewer.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="Model folder; default: the one included.")
    options = parser.parse_args()

    from transformers import pipeline

    from pneumonia_hf import Predictor
    from pneumonia_hf.inference.backends import BACKENDS, NEEDED
    from pneumonia_hf.inference.batch import find_inputs
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL, QUANTIZATION_FILE

    model = options.model or DEFAULT_MODEL
    names = [name for name in BACKENDS if all(find_spec(one) for one in NEEDED[name])]
    if not (Path(model) / QUANTIZATION_FILE).exists():
        names.remove("int8")
    predictors = {name: Predictor.from_pretrained(model, backend=name) for name in names}
    plain = pipeline("image-classification", model=str(model))
    print(f"{describe_machine()}; {Path(model).name}.\n")
    print("| images | files | pipeline, images/s (best batch) | backend | images/s | ratio |")
    print("|---|---|---|---|---|---|")
    for folder in filter(None, (options.data_dir, options.full_size)):
        found = find_inputs([folder])
        files = [found[at % len(found)] for at in range(options.images)]
        paths = [str(file) for file in files]
        arms = {f"pipeline {size}": partial(plain, paths, batch_size=size) for size in BATCHES}
        arms |= {name: partial(_score, one, files) for name, one in predictors.items()}
        for run in arms.values():
            run()
        best = dict.fromkeys(arms, float("inf"))
        for _ in range(options.rounds):
            for name, run in arms.items():
                started = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - started)
        size = min(BATCHES, key=lambda size: best[f"pipeline {size}"])
        reference = best[f"pipeline {size}"]
        for name in names:
            print(
                f"| {Path(folder).name} | {len(files)} | {len(files) / reference:.1f} ({size}) | "
                f"{name} | {len(files) / best[name]:.1f} | {reference / best[name]:.2f} |",
                flush=True,
            )


def _score(predictor, files: list[Path]) -> None:
    """Score files as `predict.py` does."""
    list(predictor.predict_files(files))


if __name__ == "__main__":
    run_script(main)
