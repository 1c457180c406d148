"""Section: the model's third class, abnormal without pneumonia, against what the data says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pneumonia_hf.data.table import CLASS
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.labels import LABELS, OTHER
from pneumonia_hf.reporting.numbers import to_share, to_text
from pneumonia_hf.reporting.page import Section, Table
from pneumonia_hf.statistics.intervals import bootstrap
from pneumonia_hf.statistics.metrics import auroc

TITLE = "Abnormal without pneumonia"
CLASSES = (LABELS[0], OTHER, LABELS[1])


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return how well the model separates other abnormal images from normal ones, if it does."""
    scores = evaluation.scores
    classes = list_classes(evaluation)
    if np.isnan(scores.other).all() or not {LABELS[0], OTHER} <= set(classes.tolist()):
        return Section(TITLE, (), {"other_abnormal": None})
    share = scores.other / np.maximum(1 - scores.probabilities, 1e-12)  # of those not pneumonia
    called = np.where(evaluation.positive, LABELS[1], np.where(share >= 0.5, OTHER, LABELS[0]))

    def measure_rows(rows: np.ndarray) -> Sequence[float | np.ndarray]:
        rows = rows[classes[rows] != LABELS[1]]
        is_other = classes[rows] == OTHER
        named = share[rows] >= 0.5
        area = auroc(is_other.astype(int), share[rows], np.nan)
        return area, named[is_other], ~named[~is_other]

    found = bootstrap(measure_rows, len(classes), evaluation.resamples)
    counts = {
        one: {other: int(np.sum((classes == one) & (called == other))) for other in CLASSES}
        for one in CLASSES
    }
    names = ("auroc", "sensitivity", "specificity")
    table = Table(
        ["class", "images", *(f"called {name}" for name in CLASSES)],
        [[one, sum(of.values()), *(f"{n} ({to_share(n, sum(of.values()))})" for n in of.values())]
         for one, of in counts.items() if sum(of.values())],
    )  # fmt: skip
    area, sensitivity, specificity = map(to_text, found)
    return Section(
        TITLE,
        (
            "The model has a third class for images that are abnormal without pneumonia. It is "
            "named for an image below the threshold if it is likelier than NORMAL; label and "
            "decision do not depend on it.",
            table,
            f"Other abnormal against normal images: AUROC {area}; at equal probability sensitivity "
            f"{sensitivity} and specificity {specificity}, without regard to the threshold.",
        ),
        {
            "other_abnormal": {
                "called": counts,
                **{name: asdict(one) for name, one in zip(names, found, strict=True)},
            }
        },
    )


def list_classes(evaluation: Evaluation) -> np.ndarray:
    """Return the class of each image, OTHER for all that is named neither: text [N]."""
    rows = evaluation.scores.rows
    names = rows[CLASS][:] if CLASS in rows.column_names else [None] * len(rows)
    own = [name if name in LABELS or not name else OTHER for name in names]
    pairs = zip(own, evaluation.labels.tolist(), strict=True)
    return np.array([LABELS[1] if label else name or LABELS[0] for name, label in pairs])
