"""Which images are examples."""

import numpy as np
from datasets import Dataset

from pneumonia_hf.evaluation.scores import Scores
from pneumonia_hf.evaluation.sections.examples import choose_examples


def test_examples_are_the_surest_right_and_wrong_the_least_sure_and_the_referred():
    rows = Dataset.from_dict({"file": [f"f{n}" for n in range(8)], "patient": list("abcdefgh")})
    labels = np.array([1, 1, 1, 0, 0, 0, 1, 0])
    scores = np.array([0.99, 0.9, 0.02, 0.01, 0.2, 0.97, 0.52, 0.45])
    decisions = np.array(["PNEUMONIA"] * 6 + ["REFER"] * 2)
    found = choose_examples(
        Scores(rows, labels, scores, np.full(8, np.nan), decisions, {}, ()), 0.5, count=2
    )
    kinds = {}
    for one in found:
        kinds.setdefault(one.kind, []).append(one.file)
    assert kinds == {
        "surest right": ["f0", "f3"],
        "surest wrong": ["f2", "f5"],
        "least sure": ["f6", "f7"],
        "referred, far from the threshold": ["f7", "f6"],
    }
