"""What a model decides by: its results on perturbed copies of a labelled data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pneumonia_hf.evaluation.intervals import Interval, draw_patients, percentile_interval
from pneumonia_hf.evaluation.metrics import auroc
from pneumonia_hf.evaluation.perturbations import COUNTERFACTUALS, PERTURBATIONS, perturb
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.imaging.preprocess import resize
from pneumonia_hf.inference.operating_point import to_probability

if TYPE_CHECKING:
    from pneumonia_hf.inference.predictor import Predictor

GAP = ("frame_swap", 0.2)  # the perturbation of the shortcut gap
PLAIN = ("plain", 0.0)


@dataclass(frozen=True)
class PerturbedResult:
    """The results on one set of copies."""

    name: str  # a key of PERTURBATIONS, or plain
    level: float
    auroc: Interval
    sensitivity: Interval  # at the model's threshold
    specificity: Interval
    flipped: float  # share of the images whose side of the threshold changes


@dataclass(frozen=True)
class Robustness:
    """The results on the plain images and on all their copies."""

    results: tuple[PerturbedResult, ...]  # first those of the plain images
    shortcut_gap: Interval  # AUROC of the plain images less that of the frame swap
    robust_auroc: float  # the mean AUROC of the plain images and of COUNTERFACTUALS
    images: int
    seed: int

    @property
    def worst(self) -> PerturbedResult:
        """The copies with the lowest AUROC."""
        return min(self.results[1:], key=lambda one: one.auroc.value)


def to_json(found: Robustness) -> dict[str, Any]:
    """Return the numbers as report.json has them."""
    worst = {"name": found.worst.name, "level": found.worst.level}
    return asdict(found) | {"worst": worst | {"auroc": found.worst.auroc.value}}


def measure_robustness(
    predictor: Predictor,
    images: Iterable[Image.Image],
    labels: Sequence[int],
    patients: Sequence[str],
    resamples: int = 300,
    seed: int = 13,
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
        resamples, seed: of the bootstrap; `seed` also of the perturbations.
        steps: where the scores of each kind of copies are kept, if anywhere.
    """
    from tqdm.auto import tqdm

    labels = np.asarray(labels)
    pixels = shrink(predictor, images)
    threshold = predictor.operating_point.threshold
    cases = [PLAIN] + [(name, at) for name, one in PERTURBATIONS.items() for at in one.levels]
    scores = {}
    for name, level in tqdm(cases, desc="Perturbed copies", unit="kind", leave=False):
        found = (steps or Steps()).run(
            f"{name} {level:g} of {len(labels)}",
            lambda name=name, level=level: {
                "log_odds": score(
                    predictor,
                    pixels if name == "plain" else perturb(pixels, labels, name, level, seed),
                )
            },
        )
        scores[name, level] = to_probability(found["log_odds"])
    draws = list(draw_patients(labels, patients, resamples, seed))
    areas = {case: [auroc(labels[d], one[d], 0) for d in draws] for case, one in scores.items()}
    values = {case: auroc(labels, one, 0) for case, one in scores.items()}
    plain = scores[PLAIN] >= threshold
    results = []
    for case, one in scores.items():
        positive = one >= threshold
        shares = {}
        for label, right in ((1, positive), (0, ~positive)):
            drawn = [np.mean(right[d][labels[d] == label]) for d in draws]
            shares[label] = percentile_interval(np.mean(right[labels == label]), drawn)
        area = percentile_interval(values[case], areas[case])
        flipped = float(np.mean(positive != plain))
        results.append(PerturbedResult(*case, area, shares[1], shares[0], flipped))
    gap = percentile_interval(
        values[PLAIN] - values[GAP], np.subtract(areas[PLAIN], areas[GAP]).tolist()
    )
    robust = float(np.mean([values[case] for case in (PLAIN, *COUNTERFACTUALS)]))
    return Robustness(tuple(results), gap, robust, len(labels), seed)


def shrink(predictor: Predictor, images: Iterable[Image.Image]) -> np.ndarray:
    """Return images at the largest input size of the predictor: uint8 [N, 1, H, W]."""
    largest = max(predictor.networks, key=lambda one: one.processor.size["height"])
    return np.concatenate([resize([image], largest.processor).numpy() for image in images])


def score(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """Return the predictor's log odds of gray images: float64 [N]; `pixels` is as of `shrink`."""
    chunks = range(0, len(pixels), 64)
    images = ([Image.fromarray(one[0]) for one in pixels[at : at + 64]] for at in chunks)
    return np.concatenate([predictor.log_odds(chunk) for chunk in images])
