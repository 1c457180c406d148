"""Calibration in words and numbers."""

import math
from dataclasses import replace

import numpy as np

from pneumonia_hf import EvaluationConfig, evaluate_predictor
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation.report import write_report
from pneumonia_hf.evaluation.sections.calibration import describe as describe_calibration
from pneumonia_hf.evaluation.sections.checklist import measure as fill_checklist
from pneumonia_hf.files import without_nan
from pneumonia_hf.statistics.calibration import measure_calibration
from pneumonia_hf.statistics.intervals import Interval


def test_report_gives_the_prevalence_of_its_calibration_error(predictor, xray_folder, tmp_path):
    data = load_splits(xray_folder)["all"]
    labels = np.array(data["label"][:])
    rows = [*np.flatnonzero(labels == 1)[:30], *np.flatnonzero(labels == 0)[:10]]
    report = evaluate_predictor(
        predictor, data.select(rows), "drawn", "all", config=EvaluationConfig(resamples=50)
    )
    numbers = report.numbers
    assert numbers["prevalence"] == 0.75
    assert {"ece", "ece_balanced", "brier", "brier_balanced"} <= numbers["metrics"].keys()
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "this data's prevalence of 75.0%" in text and "for a prevalence of 50%" in text


def test_a_calibration_slope_that_does_not_exist_is_said_in_words_and_null_in_json(report):
    evaluation = report.evaluation
    found = measure_calibration(evaluation.labels, evaluation.probabilities, evaluation.resamples)
    none = Interval(math.inf, math.nan, math.nan)
    section = describe_calibration(replace(found, slope=none), evaluation)
    words = "not defined: the log odds separate the classes"
    filled = fill_checklist(evaluation, report.numbers | section.numbers).numbers["checklist"]
    answers = {one["topic"]: one["answer"] for one in filled}
    assert answers["calibration"] == f"slope {words}; see Calibration"
    assert f"slope (below 1: overconfident) is {words}" in section.body[0]
    slope = without_nan(dict(section.numbers))["calibration"]["slope"]
    assert slope == {"value": None, "low": None, "high": None}
