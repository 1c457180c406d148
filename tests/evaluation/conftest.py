"""What several files of tests look at: a report on drawn X-rays, and scores made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from pneumonia_hf import EvaluationConfig, Predictor, evaluate_predictor
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.report import write_report
from pneumonia_hf.evaluation.scores import IN_RANGE, Scores
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.evaluation.subgroups import ScoredOthers
from pneumonia_hf.statistics.thresholds import OperatingPoint


@pytest.fixture(scope="session")
def predictor(tiny_model) -> Predictor:
    return Predictor.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def report(tiny_model, xray_folder):
    predictor = Predictor.from_pretrained(tiny_model)
    config = EvaluationConfig(resamples=20, robustness_images=8, attribution_images=2)
    data = load_splits(xray_folder)["all"]
    return evaluate_predictor(predictor, data, "drawn", config=config)


@pytest.fixture(scope="session")
def written(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "report"
    write_report(report, folder)
    return folder


@pytest.fixture(scope="session")
def by_hand() -> Evaluation:
    """Eight images at a threshold of 0.5, of which the third to the fifth are on the wrong side.

    Three are referred: the fifth and the sixth by the range of the threshold, the first by the
    gate.
    """
    in_range, gated = np.zeros(8, bool), np.zeros(8, bool)
    in_range[[4, 5]] = gated[0] = True
    names = {"file": [f"f{n}" for n in range(8)], "patient": [f"p{n}" for n in range(8)]}
    scores = Scores(
        Dataset.from_dict(names),
        np.repeat([0, 1], [3, 5]),
        np.array([0.1, 0.3, 0.7, 0.2, 0.4, 0.6, 0.8, 0.9]),
        np.where(gated, 1.5, 0.5),
        np.full(8, np.nan),
        np.where(in_range | gated, "REFER", "as scored"),
        {IN_RANGE: in_range, "gate": gated},
        ("torn.png: it is torn",),
    )
    predictor = SimpleNamespace(operating_point=OperatingPoint(0.5, 0.35, 0.65), has_threshold=True)
    others = ScoredOthers(unreadable=("x.png: it is empty",))
    config, seen = EvaluationConfig(resamples=40), dict.fromkeys(("train", "validation", "test"), 0)
    return Evaluation(predictor, "data", "test", scores, seen, others, config, Steps())
