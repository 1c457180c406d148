"""Section: examples of right, wrong, unsure and referred decisions, and a sheet of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.sources import open_images
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.scores import Scores
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.inference.attribution import attribute, overlay
from pneumonia_hf.labels import LABELS
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.log_odds import to_logit

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from pneumonia_hf.inference.predictor import Predictor

EXAMPLES = 6  # of each kind


@dataclass(frozen=True)
class Example:
    """An image of one kind."""

    kind: str
    row: int  # of the scores
    file: str
    label: str
    probability: float
    decision: str


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the examples as a table and, if images are asked for, as a sheet."""
    scores = evaluation.scores
    found = choose_examples(scores, evaluation.threshold)
    body: list[str | Table | Figure] = [
        "Sure is far from the threshold. `--with_images` adds a sheet of these images with their "
        "attribution maps.",
        Table(
            ["", "file", "label", "probability", "decision"],
            [
                [one.kind, one.file, one.label, f"{one.probability:.4f}", one.decision]
                for one in found
            ],
        ),
    ]
    if evaluation.additions.with_images:
        method = (numbers["faithfulness"] or {}).get("best")
        body.append(
            Figure(
                "examples",
                lambda: draw_examples(evaluation.predictor, scores, found, method),
                is_wide=True,
                has_xrays=True,
            )
        )
    return Section("Examples", tuple(body))


def choose_examples(scores: Scores, threshold: float, count: int = EXAMPLES) -> list[Example]:
    """Return the surest right, surest wrong, least sure and referred images, at most `count` each.

    Sure is far from the threshold in log odds. Right ones are of both classes in turn; referred
    ones are those farthest from the threshold, which only the gate or the input checks refer.
    """
    positive = scores.probabilities >= threshold
    right = positive == (scores.labels == 1)
    sure = np.abs(to_logit(scores.probabilities) - to_logit(np.float64(threshold)))
    order = np.argsort(-sure, kind="stable")
    of_class = [order[right[order] & (scores.labels[order] == label)] for label in (1, 0)]
    in_turn = [row for pair in zip(*of_class, strict=False) for row in pair]
    chosen = {
        "surest right": in_turn or [row for one in of_class for row in one],
        "surest wrong": order[~right[order]],
        "least sure": order[::-1],
        "referred, far from the threshold": order[scores.decisions[order] == "REFER"],
    }
    return [
        Example(
            kind,
            int(row),
            scores.files[row],
            LABELS[scores.labels[row]],
            float(scores.probabilities[row]),
            str(scores.decisions[row]),
        )
        for kind, rows in chosen.items()
        for row in rows[:count]
    ]


def draw_examples(
    predictor: Predictor, scores: Scores, examples: list[Example], method: str | None = None
) -> Drawing:
    """Return a sheet of the examples, each beside its overlay; `method` as of `attribute`."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(one.kind for one in examples))
    columns = max(sum(one.kind == kind for one in examples) for kind in kinds)
    figure = Figure(figsize=(1.9 * columns, 4.1 * len(kinds)), layout="constrained")
    grid = figure.subplots(2 * len(kinds), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for at, kind in enumerate(kinds):
        of_kind = [one for one in examples if one.kind == kind]
        chosen = open_images(scores.rows.select([one.row for one in of_kind]))
        for column, (one, (name, source)) in enumerate(zip(of_kind, chosen, strict=True)):
            image = read_xray(source, name)
            image.thumbnail((320, 320))
            laid = overlay(image, attribute(predictor, image, method).values)
            grid[2 * at, column].imshow(image, cmap="gray", vmin=0, vmax=255)
            grid[2 * at + 1, column].imshow(laid)
            title = f"{one.label}, P {one.probability:.3f}"
            grid[2 * at, column].set_title(
                f"{kind}\n{title}" if column == 0 else title, fontsize=8, loc="left"
            )
    return figure
