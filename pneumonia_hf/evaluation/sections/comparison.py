"""Section: the paired differences from another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import count_seen
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.scores import Scores, score_images
from pneumonia_hf.hub import public_name
from pneumonia_hf.labels import LABELS
from pneumonia_hf.reporting.numbers import to_count, to_text
from pneumonia_hf.reporting.page import Section, Table
from pneumonia_hf.statistics.comparison import McNemar, mcnemar, paired_differences
from pneumonia_hf.statistics.intervals import Interval, draw_patients
from pneumonia_hf.statistics.metrics import METRICS

TITLE = "Comparison"
MOST_CASES = 20  # of the images on which two models disagree


@dataclass(frozen=True)
class Disagreement:
    """An image whose side of the threshold differs between two models."""

    file: str
    label: int
    first: float  # probability
    second: float


@dataclass(frozen=True)
class Comparison:
    """The first model less the second, on the same images, each at its own threshold."""

    other: str  # name of the second model
    # How many of the images are in each split of its training run, as of `count_seen`.
    seen: dict[str, int]
    differences: dict[str, Interval]  # by a paired bootstrap over patients
    mcnemar: McNemar
    disagreements: tuple[Disagreement, ...]  # farthest apart first


def compare_scores(
    first: Scores,
    second: Scores,
    thresholds: tuple[float, float],
    other: str,
    resamples: int,
    seen: dict[str, int] | None = None,
) -> Comparison:
    """Return how two models differ on the same images.

    Raises:
        UserError: the scores are not of the same images.
    """
    if first.files != second.files:
        raise UserError(
            "The two models could not read the same images; remove those that are unreadable."
        )
    labels, both = first.labels, (first.probabilities, second.probabilities)
    positive = [of >= threshold for of, threshold in zip(both, thresholds, strict=True)]
    rows = np.flatnonzero(positive[0] != positive[1])
    rows = rows[np.argsort(-np.abs(both[0] - both[1])[rows], kind="stable")]
    draws = draw_patients(labels, first.patients, resamples)
    return Comparison(
        other,
        seen or {},
        paired_differences(labels, *both, thresholds, draws),
        mcnemar(labels, *positive),
        tuple(
            Disagreement(first.files[row], int(labels[row]), *(float(of[row]) for of in both))
            for row in rows
        ),
    )


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the differences from the second model on the same images.

    Raises:
        UserError: the two models could not read the same images.
    """
    second, scores = evaluation.second, evaluation.scores
    if second is None:
        return Section(TITLE, (), {"comparison": None})
    name = public_name(second.name) if second.path else second.name
    found = compare_scores(
        scores,
        score_images(second, scores.rows, f"the images for {name}", steps=evaluation.steps),
        (evaluation.threshold, second.operating_point.threshold),
        name,
        evaluation.config.resamples,
        count_seen(second, scores.rows),
    )
    return describe(found, evaluation.model)


def describe(found: Comparison, model: str) -> Section:
    """Return the section of a comparison of `model` with another."""
    test, cases = found.mcnemar, found.disagreements
    used = found.seen.get("train", 0) + found.seen.get("validation", 0)
    seen = (
        f"**{found.other} was trained or chosen on {used} of the images: its numbers are "
        f"optimistically biased.**"
        if used
        else f"By their bytes, {found.other} was trained or chosen on none of the images."
    )
    body = [
        f"{model} less {found.other}, on the same images, each at its own threshold. "
        f"Intervals are of a paired bootstrap over patients, also in place of a p-value of the "
        f"AUROCs; one that contains 0 does not exclude that both are equal. {seen}",
        Table(
            ["metric", "difference (95% interval)"],
            [[METRICS[name].title, to_text(value)] for name, value in found.differences.items()],
        ),
        f"McNemar's exact test: {model} alone is wrong on "
        f"{to_count(test.only_first_wrong, 'image')}, {found.other} alone on "
        f"{test.only_second_wrong}, p = {test.p:.2g}; it counts images as independent.",
    ]
    if cases:
        body += [
            f"They disagree on {to_count(len(cases), 'image')}; the farthest apart:",
            Table(
                ["file", "label", model, found.other],
                [
                    [one.file, LABELS[one.label], f"{one.first:.4f}", f"{one.second:.4f}"]
                    for one in cases[:MOST_CASES]
                ],
            ),
        ]
    return Section(TITLE, tuple(body), {"comparison": asdict(found)})
