"""A model with a third class, from training to the report."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers import (
    TINY_SIZES,
    draw_folder,
    draw_textured_xray,
    draw_xray,
    save_tiny_body,
    train_tiny,
)
from transformers import AutoModelForImageClassification, pipeline

from pneumonia_hf import EvaluationConfig, Predictor, evaluate_predictor
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation.recalibrate import calibrate, score_validation
from pneumonia_hf.evaluation.report import write_predictions
from pneumonia_hf.evaluation.sections import other_class
from pneumonia_hf.inference.network import Network
from pneumonia_hf.labels import LABELS, OTHER
from pneumonia_hf.models.build import ModelConfig, build_model
from pneumonia_hf.reasons import Reason
from pneumonia_hf.statistics.calibration import fit_temperature
from pneumonia_hf.training.checkpoints import phase_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = draw_folder(tmp_path_factory.mktemp("three") / "data", patients=16)
    (folder / "EDEMA").mkdir()
    for number in range(24):
        draw_textured_xray(7000 + number, ill=False).save(folder / "EDEMA" / f"x{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    body = save_tiny_body("convnextv2-tiny", place / "body")
    return train_tiny("convnextv2-tiny", body, f"one_vs_rest:{folder}", place / "run",
                      num_train_epochs=20, other_class=True)  # fmt: skip


@pytest.mark.slow
def test_the_probability_is_that_of_a_pipeline_and_the_rest_is_shared(model, folder):
    predictor = Predictor.from_pretrained(model)
    network = AutoModelForImageClassification.from_pretrained(model)
    assert tuple(network.config.id2label.values()) == (*LABELS, OTHER)
    plain = pipeline("image-classification", model=str(model))
    image = draw_xray(5, ill=True)
    of = {one["label"]: one["score"] for one in plain(image)}
    found = predictor.predict(image)
    assert found.probability == pytest.approx(of["PNEUMONIA"], abs=1e-5)
    assert found.other_abnormal == pytest.approx(of[OTHER], abs=1e-5)
    # The temperature divides the logits of the checkpoint.
    run = json.loads((model / "run.json").read_text())
    best = AutoModelForImageClassification.from_pretrained(
        phase_folder(model, 1) / run["training"]["best_checkpoint"].rpartition("/")[2]
    )
    pixels = predictor.network.pixel_values([image])
    with torch.no_grad():
        logits = best(pixel_values=pixels).logits / run["validation"]["config"]["temperature"]
    assert found.probability == pytest.approx(logits.softmax(1)[0, 1].item(), abs=1e-5)


@pytest.mark.slow
def test_the_temperature_is_that_of_the_logits(model, folder):
    # A new head, whose three classes are alike: its log odds alone would get another temperature.
    config = ModelConfig("convnextv2-tiny", str(model), TINY_SIZES["convnextv2-tiny"],
                         other_class=True)  # fmt: skip
    predictor = Predictor(Network(*build_model(config)))
    data = load_splits(f"one_vs_rest:{folder}")["all"].remove_columns("label")
    # Labels that no score separates, or the temperature would stay at 1.
    labels = np.random.default_rng(3).integers(0, 2, len(data)).tolist()
    data = data.add_column("label", labels)
    kinds = score_validation(predictor, data, False)
    expected, of_log_odds = (fit_temperature(labels, *some).value for some in (kinds, kinds[:1]))
    settings = {"with_copies": False, "resamples": 5, "threshold_resamples": 5}
    found = calibrate(predictor, data, attribution_images=0, **settings)["config"]
    assert found["temperature"] == pytest.approx(expected)
    assert expected != pytest.approx(of_log_odds, rel=0.01)


@pytest.mark.slow
def test_the_report_tells_other_abnormal_images_from_normal_ones(model, folder, tmp_path):
    predictor = Predictor.from_pretrained(model)
    data = load_splits(f"one_vs_rest:{folder}")["all"]
    report = evaluate_predictor(predictor, data, config=EvaluationConfig(resamples=20))
    found = report.numbers["other_abnormal"]
    assert sum(found["called"][OTHER].values()) == 24
    assert found["auroc"]["value"] > 0.7  # the textures are easy
    write_predictions(report.evaluation, tmp_path)
    with (tmp_path / "predictions.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    shares = [float(row["other_abnormal"]) / (1 - float(row["probability"])) for row in rows]
    for row, share, decision in zip(data, shares, report.evaluation.positive, strict=True):
        said = Reason.OTHER_ABNORMAL in predictor.predict(row["image"]["path"]).reasons
        assert said == (share >= 0.5 and not decision)


def test_counts_and_rates_by_hand(by_hand):
    from dataclasses import replace

    classes = ["NORMAL", "EDEMA", "EDEMA", "VIRUS", *["PNEUMONIA"] * 4]
    rows = by_hand.scores.rows.add_column("class", classes)
    shares = np.array([0.2, 0.6, 0.9, 0.1, 0.7, 0.5, 0.5, 0.5])
    other = shares * (1 - by_hand.probabilities)
    evaluation = replace(by_hand, scores=replace(by_hand.scores, rows=rows, other=other))
    vars(evaluation)["resamples"] = [np.arange(8)] * 5
    found = other_class.measure(evaluation, {}).numbers["other_abnormal"]
    assert found["called"]["NORMAL"] == {"NORMAL": 1, OTHER: 0, "PNEUMONIA": 0}
    assert found["called"][OTHER] == {"NORMAL": 0, OTHER: 1, "PNEUMONIA": 1}
    assert found["called"]["PNEUMONIA"] == {"NORMAL": 1, OTHER: 1, "PNEUMONIA": 3}
    assert (found["auroc"]["value"], found["sensitivity"]["value"]) == (1, 1)
    assert found["sensitivity"]["low"] == pytest.approx(0.025 ** (1 / 2))  # both of two
    assert np.isnan(found["auroc"]["low"])
    assert other_class.measure(by_hand, {}).numbers == {"other_abnormal": None}
