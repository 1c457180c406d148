"""Section: examples of right, wrong, unsure and referred decisions, and a sheet of images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.sources import open_images
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.scores import Scores
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.inference.attribution import attribute, overlay
from pneumonia_hf.labels import LABELS
from pneumonia_hf.reporting.drawing import draw_images
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.log_odds import to_logit

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from pneumonia_hf.inference.predictor import Predictor

EXAMPLES = 6  # of each kind


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the examples as a table and, if images are asked for, as a sheet."""
    scores = evaluation.scores
    found = choose_examples(scores, evaluation.threshold)
    files = scores.files
    body: list[str | Table | Figure] = [
        "Sure is far from the threshold. `--with_images` adds a sheet of these images with their "
        "attribution maps.",
        Table(
            ["", "file", "label", "probability", "decision"],
            [
                [kind, files[row], LABELS[scores.labels[row]], f"{scores.probabilities[row]:.4f}",
                 scores.decisions[row]]
                for kind, rows in found.items()
                for row in rows
            ],
        ),
    ]  # fmt: skip
    if evaluation.config.with_images:
        method = (numbers["faithfulness"] or {}).get("best")
        draw = partial(draw_examples, evaluation.predictor, scores, found, method)
        body.append(Figure("examples", draw, is_wide=True, has_xrays=True))
    return Section("Examples", tuple(body))


def choose_examples(
    scores: Scores, threshold: float, count: int = EXAMPLES
) -> dict[str, list[int]]:
    """Return the surest right, surest wrong, least sure and referred images, at most `count` each.

    They are rows of the scores by kind. Sure is far from the threshold in log odds. Right ones are
    of both classes in turn; referred ones are those farthest from the threshold, which only the
    gate or the input checks refer.
    """
    positive = scores.probabilities >= threshold
    right = positive == (scores.labels == 1)
    sure = np.abs(to_logit(scores.probabilities) - to_logit(np.float64(threshold)))
    order = np.argsort(-sure, kind="stable")
    of_class = [order[right[order] & (scores.labels[order] == label)] for label in (1, 0)]
    in_turn = [row for pair in zip(*of_class, strict=False) for row in pair]
    chosen = {
        "surest right": in_turn or np.concatenate(of_class),
        "surest wrong": order[~right[order]],
        "least sure": order[::-1],
        "referred, far from the threshold": order[scores.decisions[order] == "REFER"],
    }
    return {kind: [int(row) for row in rows[:count]] for kind, rows in chosen.items() if len(rows)}


def draw_examples(
    predictor: Predictor,
    scores: Scores,
    examples: Mapping[str, list[int]],
    method: str | None = None,
) -> Drawing:
    """Return a sheet of the examples, each above its overlay; `method` as of `attribute`."""
    lines = []
    for kind, rows in examples.items():
        line = []
        for row, (name, source) in zip(rows, open_images(scores.rows.select(rows)), strict=True):
            image = read_xray(source, name)
            image.thumbnail((320, 320))
            title = f"{LABELS[scores.labels[row]]}, P {scores.probabilities[row]:.3f}"
            laid = overlay(image, attribute(predictor, image, method).values)
            line.append((image, title if line else f"{kind}\n{title}", laid))
        lines += [[one[:2] for one in line], [(laid, "") for _, _, laid in line]]
    return draw_images(lines)
