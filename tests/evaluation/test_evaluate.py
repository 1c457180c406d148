import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pneumonia_hf import Predictor
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation.choose_images import choose_split
from pneumonia_hf.evaluation.context import EvaluationConfig
from pneumonia_hf.evaluation.evaluate import evaluate_predictor
from pneumonia_hf.evaluation.report import write_report
from pneumonia_hf.models.model_card import add_report, find_misfit
from pneumonia_hf.statistics.metrics import METRICS


@pytest.mark.figures
def test_report_json_has_all_documented_keys(predictor, xray_folder, tmp_path):
    name, data = choose_split(xray_folder, None, predictor)
    report = evaluate_predictor(
        predictor, data, "drawn", name, config=EvaluationConfig(resamples=100)
    )
    write_report(report, tmp_path)
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["n"] == 96 and (numbers["NORMAL"], numbers["PNEUMONIA"]) == (48, 48)
    assert numbers["threshold"] == predictor.operating_point.threshold
    assert numbers["metrics"].keys() == METRICS.keys()
    for metric in numbers["metrics"].values():
        assert metric.keys() == {"value", "low", "high"}
    counts = numbers["confusion"]
    assert sum(counts.values()) == 96
    right = counts["true_positive"] + counts["true_negative"]
    assert numbers["metrics"]["accuracy"]["value"] == pytest.approx(right / 96)
    assert numbers["metrics"]["sensitivity"]["value"] == pytest.approx(counts["true_positive"] / 48)
    with (tmp_path / "predictions.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    positive = [float(row["probability"]) >= numbers["threshold"] for row in rows]
    truth = [row["label"] == "PNEUMONIA" for row in rows]
    assert np.mean(np.equal(positive, truth)) == pytest.approx(right / 96)
    for figure in ("confusion_matrix", "roc_curve", "precision_recall", "calibration"):
        with Image.open(tmp_path / f"{figure}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5
        assert f"{figure}.png" in (tmp_path / "report.md").read_text()


def test_images_seen_in_training_are_counted_and_noted(predictor, tiny_model, xray_folder):
    run = json.loads((tiny_model / "run.json").read_text())
    report = evaluate_predictor(
        predictor, load_splits(xray_folder)["all"], config=EvaluationConfig(resamples=100)
    )
    assert report.evaluation.seen["train"] == run["data"]["parts"]["train"]["images"]
    assert "was trained on" in report.numbers["notes"][0] == report.page.summary.reservations[0]
    # The same bytes under other names are the same images.
    assert report.numbers["seen_in_validation"] == run["data"]["parts"]["validation"]["images"]


def make_reports(error: float, p: float, external: bool = True) -> list[dict]:
    metrics = {"ece_balanced": {"value": error, "low": error, "high": error}}
    return [{"data": "elsewhere", "external": external, "calibration_p": p, "metrics": metrics}]


def test_only_a_significant_external_misfit_removes_the_word_calibrated():
    assert find_misfit(make_reports(0.2, 0.001))["data"] == "elsewhere"
    assert find_misfit(make_reports(0.2, 0.2)) is None  # not significant
    assert find_misfit(make_reports(0.04, 0.001)) is None  # too small
    assert find_misfit(make_reports(0.2, 0.001, external=False)) is None
    assert find_misfit([{"data": "old", "metrics": {"ece": {"low": 0.5}}}]) is None


def test_card_and_app_drop_the_word_calibrated_after_an_external_misfit(
    tiny_model, adults, tmp_path
):
    from pneumonia_hf.demo.about import describe_model
    from pneumonia_hf.demo.engine import Engine
    from pneumonia_hf.demo.limits import Limits

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    report = evaluate_predictor(
        Predictor.from_pretrained(model),
        load_splits(adults)["all"],
        "adults",
        config=EvaluationConfig(resamples=20, external=True),
    ).numbers
    for error in (0.0, 0.4):
        report["metrics"]["ece_balanced"] = {"value": error, "low": error, "high": error}
        add_report(model, report | {"calibration_p": 1e-6})
        shown = describe_model(Engine(Predictor.from_pretrained(model), Limits()))
        card = (model / "README.md").read_text()
        assert ("**not calibrated**" in shown) == (error > 0)
        assert ("Do not read it as a probability there" in card) == (error > 0)
        assert "population in which half of the images" in card
