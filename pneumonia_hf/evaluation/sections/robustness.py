"""Section: what a model decides by, from its results on perturbed copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.perturbations import (
    CONTROLS,
    COUNTERFACTUALS,
    PERTURBATIONS,
    ROBUST,
    perturb,
)
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.imaging.preprocess import resize
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.models.run_manifest import read_manifest
from pneumonia_hf.reporting.drawing import COLOUR
from pneumonia_hf.reporting.numbers import to_text
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.intervals import Interval, draw_patients, percentile_interval
from pneumonia_hf.statistics.log_odds import to_probability
from pneumonia_hf.statistics.metrics import auroc, bootstrap_intervals, has_few_patients

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from pneumonia_hf.inference.predictor import Predictor

GAP = ("frame_swap", 0.2)  # the perturbation of the shortcut gap
PLAIN = ("plain", 0.0)
EVERY = PERTURBATIONS | CONTROLS
MEASURED = ("auroc", "sensitivity", "specificity")  # of each kind of copies
SEED = 13  # of the bootstrap and of the perturbations
TITLE = "Robustness"


@dataclass(frozen=True)
class PerturbedResult:
    """The results on one set of copies."""

    name: str  # a key of PERTURBATIONS, or plain
    level: float
    auroc: Interval
    sensitivity: Interval  # at the model's threshold
    specificity: Interval
    flipped: float  # share of the images whose side of the threshold changes
    trained: bool = False  # whether the model's training changed images in the like way
    selected: bool = False  # whether its checkpoint was chosen on such copies of validation images


@dataclass(frozen=True)
class Robustness:
    """The results on the plain images and on all their copies."""

    results: tuple[PerturbedResult, ...]  # first those of the plain images
    control: PerturbedResult  # the centre of the other class in the image's own frame
    shortcut_gap: Interval  # AUROC of the plain images less that of the frame swap at 20%
    swap_gaps: dict[str, Interval]  # the same at each share of the side
    robust_auroc: float  # the mean AUROC of the plain images and of COUNTERFACTUALS
    images: int
    seed: int

    @property
    def worst(self) -> PerturbedResult:
        """The copies with the lowest AUROC."""
        return min(self.results[1:], key=lambda one: one.auroc.value)


def measure_robustness(
    predictor: Predictor,
    images: Iterable[Image.Image],
    labels: Sequence[int],
    patients: Sequence[str],
    resamples: int = 1000,
    steps: Steps | None = None,
) -> Robustness:
    """Return the results of a model on every perturbation and level.

    The images are first resized to the model's input, as the model does itself. Copies are scored
    by the predictor, at its threshold. Intervals are of a bootstrap over patients, in which plain
    images and copies are drawn together.

    Args:
        predictor: one model, or an ensemble, whose largest input size is used.
        images: gray, as `read_xray` returns them, in the order of `labels` and `patients`.
        labels: 0 (NORMAL) or 1 (PNEUMONIA); both must occur.
        resamples: of the bootstrap.
        steps: where the scores of each kind of copies are kept, if anywhere.
    """
    labels, steps = np.asarray(labels), steps or Steps()
    pixels = shrink(predictor, images)

    def score_case(name: str, level: float) -> dict[str, np.ndarray]:
        copies = pixels if name == "plain" else perturb(pixels, labels, name, level, SEED)
        return {"log_odds": score(predictor, copies, steps)}

    scores = {}
    for case in list_cases():
        name = f"{case[0]} {case[1]:g} of {len(labels)}"
        found = steps.run(name, partial(score_case, *case), passes=len(labels))
        scores[case] = to_probability(found["log_odds"])
    threshold = predictor.operating_point.threshold
    draws = list(draw_patients(labels, patients, resamples, SEED))
    operations, selected = read_training(predictor)
    results = {}
    for case, one in scores.items():
        metrics = bootstrap_intervals(labels, one, threshold, patients, draws, MEASURED)
        flipped = float(np.mean((one >= threshold) != (scores[PLAIN] >= threshold)))
        trained = case != PLAIN and EVERY[case[0]].trained_by in operations
        of_selection = selected and case in COUNTERFACTUALS
        results[case] = PerturbedResult(*case, **metrics, flipped=flipped, trained=trained,
                                        selected=of_selection)  # fmt: skip
    draws = [] if has_few_patients(labels, patients) else draws  # as for the areas themselves
    gaps = {}
    for level in PERTURBATIONS[GAP[0]].levels:
        pair = scores[PLAIN], scores[GAP[0], level]
        drops = [auroc(labels[d], pair[0][d], 0) - auroc(labels[d], pair[1][d], 0) for d in draws]
        value = results[PLAIN].auroc.value - results[GAP[0], level].auroc.value
        gaps[f"{level:g}"] = percentile_interval(value, drops)
    robust = float(np.mean([results[case].auroc.value for case in (PLAIN, *COUNTERFACTUALS)]))
    *kept, control = results.values()
    return Robustness(tuple(kept), control, gaps[f"{GAP[1]:g}"], gaps, robust, len(labels), SEED)


def list_cases() -> list[tuple[str, float]]:
    """Return the name and level of each kind of copies, first the plain images."""
    return [PLAIN] + [(name, at) for name, one in EVERY.items() for at in one.levels]


def count_passes(evaluation: Evaluation) -> int:
    """Return how many forward passes `measure` will need."""
    drawn = min(evaluation.config.robustness_images, len(evaluation.labels))
    return drawn * len(list_cases())


def read_training(predictor: Predictor) -> tuple[set[str | None], bool]:
    """Return the augmentations of any member's training, and whether ROBUST chose a checkpoint.

    They are those of the run manifest; without one, none and False.
    """
    operations: set[str | None] = set()
    selected = False
    for network in predictor.networks:
        manifest = read_manifest(network.path)
        strengths = manifest.augmentation
        if strengths.get("augment_strength"):
            names = (name for name, strength in strengths.items() if strength)
            operations |= {name.removeprefix("augment_") for name in names}
        selected |= manifest.training.metric_for_best_model == ROBUST
    return operations, selected


def shrink(predictor: Predictor, images: Iterable[Image.Image]) -> np.ndarray:
    """Return images at the largest input size of the predictor: uint8 [N, 1, H, W]."""
    largest = max(predictor.networks, key=lambda one: one.processor.size["height"])
    return np.concatenate([resize([image], largest.processor).numpy() for image in images])


def score(predictor: Predictor, pixels: np.ndarray, steps: Steps) -> np.ndarray:
    """Return the predictor's log odds of gray images: float64 [N]; `pixels` is as of `shrink`."""

    def of_rows(rows: Sequence[int]) -> Iterator[float]:
        for chunk in in_chunks(pixels[rows]):
            yield from predictor.log_odds(chunk).tolist()

    return np.array(steps.share(of_rows, len(pixels)))


def in_chunks(pixels: np.ndarray) -> Iterator[list[Image.Image]]:
    """Yield the images of `pixels`, as of `shrink`, 64 at a time."""
    for at in range(0, len(pixels), 64):
        yield [Image.fromarray(one[0]) for one in pixels[at : at + 64]]


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the results on perturbed copies of images drawn at random.

    Raises:
        UserError: the images drawn are of one class.
    """
    labels, count = evaluation.labels, evaluation.config.robustness_images
    if not count:
        return Section(TITLE, (), {"robustness": None})
    rows = np.sort(np.random.default_rng(13).permutation(len(labels))[:count])
    if len(np.unique(labels[rows])) < 2:
        raise UserError("The images drawn for --robustness have one class only; give more images.")
    chosen = evaluation.scores.rows.select(rows)
    found = measure_robustness(
        evaluation.predictor,
        (read_xray(source, name) for name, source in open_images(chosen)),
        labels[rows],
        chosen["patient"][:],
        evaluation.config.resamples,
        steps=evaluation.steps,
    )
    return describe(found)


def describe(found: Robustness) -> Section:
    """Return the section of measured results."""
    worst = found.worst
    swaps = ", ".join(
        f"{to_text(gap)} at {float(level):.0%} ({1 - (1 - 2 * float(level)) ** 2:.0%} of the area)"
        for level, gap in found.swap_gaps.items()
    )
    body = (
        f"**Shortcut gap {to_text(found.shortcut_gap)}; worst case AUROC {to_text(worst.auroc)} "
        f"({worst.name.replace('_', ' ')} {worst.level:g}).** The copies "
        f"of {found.images} images have another frame, other markers, another look or a lower "
        f"quality, and the same diagnosis. The shortcut gap is the AUROC on the plain images less "
        f"that on copies whose outer 20% of each side come from an image of the other class. By "
        f"the share of each side it is {swaps}. At 20% the sides, the bases and the apices of the "
        f"lungs are exchanged too: such copies are hard for an honest reader of the outer lung as "
        f"well, and the gaps at 5% and 10% say more about markers and margins.",
        "The last row is the reverse, and not among the worst: the image's own frame, and within "
        "it (20% from each side) an image of the other class. A model that decides by what is "
        "inside ranks these copies the wrong way round: the lower its AUROC, the better.",
        "Flipped is the share of the images whose side of the threshold changes. In training: the "
        "model's augmentation made such changes, and its checkpoint was selected on such copies "
        "of validation images, so that the row says less about changes that it has not met.",
        Table(
            ["copies", "level", "AUROC", "sensitivity", "specificity", "flipped", "in training"],
            [
                [
                    one.name.replace("_", " "),
                    f"{one.level:g} {EVERY[one.name].unit}" if one.name in EVERY else "",
                    *(to_text(part) for part in (one.auroc, one.sensitivity, one.specificity)),
                    f"{one.flipped:.1%}",
                    "yes, and selection" if one.selected else "yes" if one.trained else "",
                ]
                for one in (*found.results, found.control)
            ],
        ),
        Figure("robustness", lambda: draw_robustness(found), is_wide=True),
    )
    summary = {"name": worst.name, "level": worst.level, "auroc": worst.auroc.value}
    return Section(TITLE, body, {"robustness": asdict(found) | {"worst": summary}})


def draw_robustness(found: Robustness) -> Drawing:
    """Return the AUROC of each kind of copies by severity."""
    from matplotlib.figure import Figure

    plain, *copies = found.results
    columns = 5
    rows = -(-len(PERTURBATIONS) // columns)
    figure = Figure(figsize=(2.3 * columns, 2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    lowest = min(one.auroc.low for one in (plain, *copies))
    for axes, name in zip(grid.flat, PERTURBATIONS, strict=False):
        levels = [one for one in copies if one.name == name]
        areas = [one.auroc for one in (plain, *levels)]
        places = range(len(areas))
        axes.fill_between(
            places, [x.low for x in areas], [x.high for x in areas], color=COLOUR, alpha=0.18,
            linewidth=0,
        )  # fmt: skip
        axes.plot(places, [x.value for x in areas], "o-", color=COLOUR, markersize=4)
        axes.set_xticks(places, ["plain", *(f"{one.level:g}" for one in levels)], fontsize=8)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_ylim(max(0, lowest - 0.02), 1.005)
        axes.grid(axis="y", alpha=0.3)
    for axes in grid.flat[len(PERTURBATIONS) :]:
        axes.axis("off")
    figure.supylabel("AUROC with 95% interval", fontsize=10)
    return figure
