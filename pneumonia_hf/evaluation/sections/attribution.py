"""Section: whether the attribution maps say anything about the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pneumonia_hf.data.sources import open_images
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.faithfulness import Faithfulness, measure_faithfulness
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.reporting.numbers import to_text
from pneumonia_hf.reporting.page import Section, Table

TITLE = "Do the attribution maps mean anything"
FEWEST_HITS = 4  # true positives and negatives, below which attribution is not tested
NOT_TESTED = (
    f"Not tested: the tests need one network, and {FEWEST_HITS} pneumonias and normals each on the "
    f"right side of the threshold."
)
# Title -> field of a result.
TESTS = {
    "agreement with occlusion": "occlusion",
    "with permuted weights": "randomised",
    "with a shifted image": "repeatable",
    "with another seed": "seeds",
    "completeness error": "completeness_error",
    "share in the border": "border",
    "infidelity": "infidelity",
    "largest sensitivity": "sensitivity",
}


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the tests of the attribution methods on true positives drawn at random."""
    count, predictor = evaluation.config.attribution_images, evaluation.predictor
    if not count:
        return Section(TITLE, (), {"faithfulness": None})
    hits = np.flatnonzero(evaluation.positive & (evaluation.labels == 1))
    normals = np.flatnonzero(~evaluation.positive & (evaluation.labels == 0))
    if predictor.is_ensemble or min(len(hits), len(normals)) < FEWEST_HITS:
        return Section(TITLE, (NOT_TESTED,), {"faithfulness": None})
    images = []
    for rows in (hits, normals):
        drawn = np.sort(np.random.default_rng(13).permutation(rows)[:count])
        chosen = open_images(evaluation.scores.rows.select(drawn))
        images.append([read_xray(source, name) for name, source in chosen])
    return describe(measure_faithfulness(predictor, *images, evaluation.steps))


def describe(found: Faithfulness) -> Section:
    """Return the section of tested methods."""
    best = "**No method passes.**"
    if found.best:
        best = (
            f"**{_name_method(found.best)}** has the largest gain per second among those that pass."
        )
    body = (
        f"Tested on {found.images} true positives, with 95% intervals over them, not adjusted for "
        f"the number of methods: so few images show large effects only. {best} A map of a method "
        f"that passes shows where the score comes from; it does not locate disease.",
        Table(
            ["method", "verdict", "seconds", "deletion", "insertion", "gain over random maps",
             "gain over a centre blob"],
            [
                [
                    _name_method(one.method),
                    ": ".join(filter(None, (one.verdict, ", ".join(one.faults)))),
                    f"{one.seconds:.2f}",
                    *(to_text(part, "") for part in (one.deletion, one.insertion,
                                                     one.gain_over_random, one.gain_over_centre)),
                ]
                for one in found.results
            ],
        ),
        "Deletion and insertion (after Petsiuk et al. 2018): the mean probability while the "
        "highest cells of a map are replaced by those of normal images (lower is better), and "
        "while they are put into normal images (higher is better). Gain: insertion less deletion, "
        "minus that of the control.",
        Table(
            ["method", *TESTS],
            [
                [_name_method(one.method), *(to_text(getattr(one, f), "") for f in TESTS.values())]
                for one in found.results
                if one.verdict
            ],
        ),
        "Correlations over 7 x 7 cells: of ranks with occlusion, with the map after all weight "
        "tensors are permuted (Adebayo et al. 2018: should be low; the mean of two permutations), "
        "with that of a shifted image and, where a method is random, of another seed (should be "
        "high). The completeness error is how far the sum of integrated gradients is from the "
        "difference in log odds that they should explain. The border is the outer tenth of each "
        f"side, {found.border_area:.0%} of the image: more attribution there than that is a "
        "shortcut made visible. Infidelity (Yeh et al. 2019) and sensitivity are captum's; lower "
        "is better.",
        "A method passes if both gains are above 0, the correlation with permuted weights is below "
        "0.5, those with a shifted image and another seed are above 0.7, and the completeness "
        "error is below 5%.",
    )  # fmt: skip
    results = [
        asdict(one) | {"faults": list(one.faults), "verdict": one.verdict} for one in found.results
    ]
    numbers = asdict(found) | {"best": found.best, "results": results}
    return Section(TITLE, body, {"faithfulness": numbers})


def _name_method(name: str) -> str:
    return {"random": "control: random maps", "centre": "control: centre blob"}.get(
        name, name.replace("_", " ")
    )
