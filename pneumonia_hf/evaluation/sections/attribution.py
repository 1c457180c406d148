"""Section: whether the attribution maps point at disease, and say anything about the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pneumonia_hf.data.boxes import BOXES, draw_boxes
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.evaluation import faithfulness
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.faithfulness import (
    LEAST_REPEATABLE,
    MOST_AFTER_RANDOMISATION,
    Faithfulness,
    measure_faithfulness,
)
from pneumonia_hf.evaluation.localisation import (
    DIAMETERS,
    PHANTOM,
    SIDE,
    MarkedImage,
    Truth,
    simulate_opacities,
)
from pneumonia_hf.imaging.phantom import ZONES
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.inference.attribution import methods_for
from pneumonia_hf.reporting.numbers import to_text
from pneumonia_hf.reporting.page import Section, Table

TITLE = "Do the attribution maps mean anything"
FEWEST_HITS = 4  # true positives, below which attribution is not tested
HEADS = {
    BOXES: "Radiologists' boxes on {} images of {} patients: does the highest place of the map",
    PHANTOM: "Simulated opacities on {} films of one patient, which differ from the normal film in "
    "nothing else: does the highest place of what is added to the map of the normal film",
}
NOT_TESTED = (
    f"Not tested: the tests need one network, and {FEWEST_HITS} pneumonias on the right side of "
    f"the threshold."
)


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the tests of the attribution methods on true positives drawn at random."""
    if not evaluation.config.attribution_images:
        return Section(TITLE, (), {"faithfulness": None})
    drawn = _draw(evaluation)
    if not len(drawn):
        return Section(TITLE, (NOT_TESTED,), {"faithfulness": None})
    rows = evaluation.scores.rows
    boxes = _read_column(evaluation)
    patients = np.asarray(evaluation.scores.patients)
    images = [
        MarkedImage(read_xray(source, name), draw_boxes(boxes[row], SIDE, SIDE), patients[row])
        for row, (name, source) in zip(drawn, open_images(rows.select(drawn)), strict=True)
    ]
    resamples = evaluation.config.resamples
    return describe(
        measure_faithfulness(
            evaluation.predictor, images, simulate_opacities(), evaluation.steps, resamples
        )
    )


def count_passes(evaluation: Evaluation) -> int:
    """Return how many forward passes `measure` will need, about."""
    drawn, films = len(_draw(evaluation)), 1 + len(ZONES) * len(DIAMETERS)
    names = methods_for(evaluation.predictor) if drawn else []
    return sum(faithfulness.count_passes(name, drawn, films) for name in names)


def _draw(evaluation: Evaluation) -> np.ndarray:
    """Return the rows of true positives that are tested, those with boxes first."""
    hits = np.flatnonzero(evaluation.positive & (evaluation.labels == 1))
    if evaluation.predictor.is_ensemble or len(hits) < FEWEST_HITS:
        return hits[:0]
    boxes = _read_column(evaluation)
    drawn = sorted(np.random.default_rng(13).permutation(hits), key=lambda row: not boxes[row])
    return np.array(drawn[: evaluation.config.attribution_images], int)


def _read_column(evaluation: Evaluation) -> list[str | None]:
    rows = evaluation.scores.rows
    return rows[BOXES][:] if BOXES in rows.column_names else [None] * len(rows)


def describe(found: Faithfulness) -> Section:
    """Return the section of tested methods."""
    best = f"**{name_method(found.best)}** passes." if found.best else "**No method passes.**"
    said = "".join(f" {name_method(one.method)}: {one.sentence}" for one in found.results)
    body = (
        f"{best} Tested on {found.images} true positives, with 95% intervals over patients.{said}",
        Table(
            ["method", "verdict", "seconds", "with permuted weights", "with a shifted image",
             "with occlusion"],
            [
                [
                    name_method(one.method),
                    ": ".join(filter(None, (one.verdict, ", ".join(one.faults)))),
                    f"{one.seconds:.2f}",
                    *map(to_text, (one.randomised, one.repeatable, one.occlusion)),
                ]
                for one in found.results
            ],
        ),
        f"A method passes if its maximum lies in the boxes, or without boxes in the simulated "
        f"opacities, more often than that of the fixed map (interval above 0); if over 7 x 7 cells "
        f"its correlation with the map after all weight tensors are permuted (Adebayo et al. 2018) "
        f"is below {MOST_AFTER_RANDOMISATION}, and with that of an image shifted by 3% above "
        f"{LEAST_REPEATABLE}. Even then a map shows where the score comes from, and locates no "
        f"disease.",
        *(part for truth in found.truths for part in _describe_truth(truth)),
    )  # fmt: skip
    results = [
        {name: value for name, value in asdict(one).items() if name != "truth"}
        | {"faults": list(one.faults), "verdict": one.verdict, "sentence": one.sentence}
        for one in found.results
    ]
    numbers = asdict(found) | {"best": found.best, "results": results}
    return Section(TITLE, body, {"faithfulness": numbers})


def _describe_truth(truth: Truth) -> tuple[str, Table]:
    """Return what a truth is, and how all maps do against it."""
    text = (
        f"{HEADS[truth.source].format(truth.images, truth.patients)} lie inside, and which share "
        f"of the positive mass? Chance is the share of the area. The fixed map is the mean of the "
        f"other patients' masks, the same for all images: it knows where disease is usual."
    )
    rows = [
        [name_method(name), *map(to_text, (one.hits, one.hits_gain, one.mass))]
        for name, one in truth.methods.items()
    ]
    fixed = ["fixed map", to_text(truth.fixed_hits), "", to_text(truth.fixed_mass)]
    chance = ["chance", to_text(truth.area), "", to_text(truth.area)]
    header = ["map", "maximum inside", "minus fixed map", "mass inside"]
    return text, Table(header, [*rows, fixed, chance])


def name_method(name: str) -> str:
    """Return the name of a method for people."""
    return {"cam": "Class activation map"}.get(name, name.replace("_", " ").capitalize())
