import csv
import json
import shutil

import numpy as np
import pytest
from conftest import call_script, draw_folder
from PIL import Image

from pneumonia_hf import Predictor
from pneumonia_hf.data import load_parts
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation import choose_part, evaluate_predictor
from pneumonia_hf.metrics import METRICS
from pneumonia_hf.report import FIGURES, check_report_folder, to_json, write_report


@pytest.fixture(scope="module")
def predictor(tiny_model) -> Predictor:
    return Predictor.from_pretrained(tiny_model)


def test_report_json_has_what_is_promised(predictor, xray_folder, tmp_path):
    name, data = choose_part(xray_folder, None, predictor)
    report = evaluate_predictor(predictor, data, "drawn", name, resamples=100)
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
    called = [float(row["probability"]) >= numbers["threshold"] for row in rows]
    truth = [row["label"] == "PNEUMONIA" for row in rows]
    assert np.mean(np.equal(called, truth)) == pytest.approx(right / 96)
    for figure in FIGURES:
        with Image.open(tmp_path / f"{figure}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5
        assert f"{figure}.png" in (tmp_path / "report.md").read_text()


def test_own_test_part_of_the_model_is_found_by_its_bytes(predictor, tiny_model, xray_folder):
    run = json.loads((tiny_model / "run.json").read_text())
    name, data = choose_part(xray_folder, "test", predictor)
    assert (name, len(data)) == ("test", run["data"]["parts"]["test"]["images"])
    report = evaluate_predictor(predictor, data, resamples=100)
    assert (report.seen_in_training, report.seen_in_validation) == (0, 0)


def test_part_that_training_cut_is_found_in_a_folder_that_has_other_parts(
    predictor, xray_folder, tmp_path
):
    shutil.copytree(xray_folder, tmp_path / "train")
    name, data = choose_part(tmp_path, "test", predictor)
    assert (name, len(data)) == ("test", len(choose_part(xray_folder, "test", predictor)[1]))


def test_pictures_seen_in_training_are_counted_and_told(predictor, tiny_model, xray_folder):
    run = json.loads((tiny_model / "run.json").read_text())
    report = evaluate_predictor(predictor, load_parts(xray_folder)["all"], resamples=100)
    assert report.seen_in_training == run["data"]["parts"]["train"]["images"]
    assert "was trained on" in report.notes[0]
    # The same bytes under other names are the same pictures.
    assert to_json(report)["seen_in_validation"] == run["data"]["parts"]["validation"]["images"]


def test_parts_are_chosen_by_folder_where_there_are_some(predictor, tmp_path):
    draw_folder(tmp_path / "train", patients=2, seed=50_000)
    draw_folder(tmp_path / "test", patients=3, seed=60_000)
    assert choose_part(tmp_path, None, predictor)[0] == "test"
    assert len(choose_part(tmp_path, "train", predictor)[1]) == 4
    with pytest.raises(UserError, match=r"has no val folder and none of the \d+ pictures"):
        choose_part(tmp_path, "val", predictor)
    with pytest.raises(UserError, match="Unknown split"):
        choose_part(tmp_path, "tset", predictor)
    with pytest.raises(UserError, match=r"none of the .* pictures of the model's own test part"):
        choose_part(tmp_path / "test", "test", predictor)


def test_a_perfect_score_is_not_given_an_interval_without_width_silently(
    predictor, xray_folder, monkeypatch
):
    name, data = choose_part(xray_folder, "test", predictor)
    truth = np.array(data["label"][:]) * 0.98 + 0.01
    monkeypatch.setattr(Predictor, "probabilities", lambda self, images: truth[: len(images)])
    report = evaluate_predictor(predictor, data, "drawn", name, resamples=100)
    assert report.metrics["sensitivity"].low == 1
    assert any("Clopper" in note for note in report.notes)


def test_one_class_cannot_be_measured(predictor, xray_folder):
    data = load_parts(xray_folder)["all"].select(range(5))
    with pytest.raises(UserError, match="no readable PNEUMONIA"):
        evaluate_predictor(predictor, data)


def test_unreadable_pictures_stop_a_strict_evaluation(predictor, tmp_path):
    folder = draw_folder(tmp_path / "data", patients=3)
    (folder / "NORMAL" / "broken.jpeg").write_text("text")
    with pytest.raises(UserError, match=r"1 of 7 files cannot be read.*broken.jpeg"):
        evaluate_predictor(predictor, load_parts(folder)["all"], strict=True)


def test_older_report_is_not_replaced_silently(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="--overwrite"):
        check_report_folder(tmp_path, overwrite=False)
    check_report_folder(tmp_path, overwrite=True)


def test_script_writes_the_report_and_the_card(tiny_model, xray_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    flags = ["--model", model, "--data_dir", xray_folder, "--output_dir", tmp_path / "report"]
    done = call_script("evaluate_model.py", *flags, "--split", "test", "--add_to_card")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    card = (model / "README.md").read_text()
    assert f"{numbers['metrics']['auroc']['value']:.3f}" in card
    assert "model-index" in card
    assert Predictor.from_pretrained(model).operating_point.threshold == numbers["threshold"]


def test_files_that_cannot_be_read_are_in_the_report_and_in_no_number(tiny_model, tmp_path):
    from conftest import assert_one_sentence, call_script, draw_folder

    folder = draw_folder(tmp_path / "data", patients=6)
    (folder / "NORMAL" / "IM-0002-0000.png").write_bytes(b"\x89PNG broken")
    flags = ["--model", tiny_model, "--data_dir", folder, "--output_dir", tmp_path / "report"]
    strict = call_script("evaluate_model.py", *flags, "--strict")
    assert_one_sentence(strict, "IM-0002-0000.png", "mend or remove")
    done = call_script("evaluate_model.py", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["n"] == 11 and report["NORMAL"] == 5
    assert len(report["unreadable"]) == 1 and "IM-0002-0000.png" in report["unreadable"][0]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "1 file could not be read" in text and "not read: NORMAL/IM-0002" in text
