"""Measure the faithfulness of attribution maps.

python benchmarks/attribution.py --data_dir DATA [--model MODEL ...] [--images 20]

For each model and each method that it supports, on as many images of each class:

1. Agreement: Spearman's rank correlation of the map with occlusion, that is with how far the log
   odds fall when a square is covered; mean and range over the images.
2. Completeness of integrated gradients: how far their sum differs from the difference in log odds,
   with 32 steps and with as many as `attribute` takes.
3. Darkness: of the images with a probability below 0.01, the share whose map reaches full
   brightness, scaled by its own maximum (100% except for empty maps) and by the reference that is
   stored with the model.

Prints tables in Markdown.
"""

import logging
from pathlib import Path

import numpy as np

from pneumonia_hf.cli import make_parser, run_script

SURE = 0.01  # probability below which the model is confident that an image is normal


def main() -> None:
    """Measure every model, and print one table for each measurement."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", required=True, help="Class folders of X-rays.")
    parser.add_argument("--model", nargs="+", help="Models; default: the one included.")
    parser.add_argument("--images", type=int, default=20, help="Number, half of each class.")
    parser.add_argument("--methods", nargs="+", help="Default: all.")
    options = parser.parse_args()
    logging.getLogger("pneumonia_hf").setLevel(logging.ERROR)

    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    images = draw_images(options.data_dir, options.images)
    predictors = [Predictor.from_pretrained(one) for one in options.model or [DEFAULT_MODEL]]
    names = [Path(predictor.name).name for predictor in predictors]
    print("| model | method | images | Spearman with occlusion, mean | lowest | highest |")
    print("|---|---|---|---|---|---|")
    for name, predictor in zip(names, predictors, strict=True):
        for row in compare_with_occlusion(predictor, images, options.methods):
            print(f"| {name} | {row} |", flush=True)
    if options.methods is None or "integrated_gradients" in options.methods:
        print(
            "\n| model | images | error with 32 steps, median and highest | as taken | above 5% |"
        )
        print("|---|---|---|---|---|")
        for name, predictor in zip(names, predictors, strict=True):
            print(f"| {name} | {measure_completeness(predictor, images)} |", flush=True)
    print(f"\n| model | method | images | below {SURE} | full, own scale | full, by reference |")
    print("|---|---|---|---|---|---|")
    for name, predictor in zip(names, predictors, strict=True):
        for row in measure_darkness(predictor, images, options.methods):
            print(f"| {name} | {row} |", flush=True)


def draw_images(data_dir: str, count: int) -> list:
    """Return images of both classes, chosen by a fixed seed."""
    from pneumonia_hf.data.load import load_splits
    from pneumonia_hf.data.sources import open_images
    from pneumonia_hf.imaging.read import read_xray

    data = load_splits(data_dir)["all"]
    labels = np.array(data["label"][:])
    order = np.random.default_rng(7).permutation(len(data))
    rows = [row for label in (1, 0) for row in order[labels[order] == label][: count // 2]]
    return [read_xray(source, name) for name, source in open_images(data.select(rows))]


def choose_methods(predictor, wanted: list[str] | None) -> list[str]:
    """Return the methods that a model supports and that are wanted."""
    from pneumonia_hf.inference.attribution import methods_for

    return [name for name in methods_for(predictor) if wanted is None or name in wanted]


def compare_with_occlusion(predictor, images: list, wanted: list[str] | None) -> list[str]:
    """Return a row for each method."""
    from pneumonia_hf.evaluation.faithfulness import measure_agreement

    methods = [name for name in choose_methods(predictor, wanted) if name != "occlusion"]
    found = measure_agreement(predictor, images, methods)
    return [
        f"{method} | {len(images)} | {np.mean(several):.2f} | {min(several):.2f} | "
        f"{max(several):.2f}"
        for method, several in found.items()
    ]


def measure_completeness(predictor, images: list) -> str:
    """Return the errors of completeness, and how often they stay above 5%."""
    from pneumonia_hf.inference import attribution_methods as methods
    from pneumonia_hf.inference.attribution import attribute

    errors = []
    steps = methods.INTEGRATION_STEPS
    for taken in (methods.ROUGH_STEPS, steps):
        methods.INTEGRATION_STEPS = taken
        maps = [attribute(predictor, one, "integrated_gradients") for one in images]
        errors.append([one.completeness_error for one in maps])
    short, full = errors
    above = sum(error > methods.COMPLETE for error in full)
    texts = [f"{np.median(some):.1%}, {max(some):.1%}" for some in (short, full)]
    return f"{len(images)} | {' | '.join(texts)} | {above}"


def measure_darkness(predictor, images: list, wanted: list[str] | None) -> list[str]:
    """Return a row for each method."""
    from pneumonia_hf.inference.attribution import attribute

    sure = [one for one in images if predictor.probabilities([one])[0] < SURE]
    rows = []
    for method in choose_methods(predictor, wanted):
        brightest = [attribute(predictor, one, method).values.max() for one in sure]
        # On its own scale every map that finds anything reaches full brightness.
        full = [[one > 0 for one in brightest], [one >= 0.999 for one in brightest]]
        shares = [f"{np.mean(some):.0%}" if some else "-" for some in full]
        rows.append(f"{method} | {len(images)} | {len(sure)} | {' | '.join(shares)}")
    return rows


if __name__ == "__main__":
    run_script(main)
