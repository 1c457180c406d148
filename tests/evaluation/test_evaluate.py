import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
from helpers import assert_one_sentence, call_script, draw_folder, draw_xray
from PIL import Image
from sklearn.metrics import roc_auc_score

from pneumonia_hf import Predictor
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import choose_split
from pneumonia_hf.evaluation.context import EvaluationConfig
from pneumonia_hf.evaluation.evaluate import evaluate_predictor
from pneumonia_hf.evaluation.report import FILES, write_report
from pneumonia_hf.models.model_card import add_report, find_misfit
from pneumonia_hf.reporting.numbers import read_interval, to_text
from pneumonia_hf.reporting.write import check_folder
from pneumonia_hf.statistics.metrics import METRICS


@pytest.fixture(scope="module")
def predictor(tiny_model) -> Predictor:
    return Predictor.from_pretrained(tiny_model)


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


def test_own_test_split_is_found_by_the_bytes_of_its_images(predictor, tiny_model, xray_folder):
    run = json.loads((tiny_model / "run.json").read_text())
    name, data = choose_split(xray_folder, "test", predictor)
    assert (name, len(data)) == ("test", run["data"]["parts"]["test"]["images"])
    assert run["data"]["parts"]["test"]["share"] == pytest.approx(len(data) / 96, abs=1e-4)
    report = evaluate_predictor(predictor, data, config=EvaluationConfig(resamples=100))
    assert report.evaluation.seen["train"] == report.evaluation.seen["validation"] == 0


def test_own_test_split_is_found_in_a_folder_with_other_splits(predictor, xray_folder, tmp_path):
    shutil.copytree(xray_folder, tmp_path / "train")
    name, data = choose_split(tmp_path, "test", predictor)
    assert (name, len(data)) == ("test", len(choose_split(xray_folder, "test", predictor)[1]))


def test_images_seen_in_training_are_counted_and_noted(predictor, tiny_model, xray_folder):
    run = json.loads((tiny_model / "run.json").read_text())
    report = evaluate_predictor(
        predictor, load_splits(xray_folder)["all"], config=EvaluationConfig(resamples=100)
    )
    assert report.evaluation.seen["train"] == run["data"]["parts"]["train"]["images"]
    assert "was trained on" in report.numbers["notes"][0] == report.page.summary.reservations[0]
    # The same bytes under other names are the same images.
    assert report.numbers["seen_in_validation"] == run["data"]["parts"]["validation"]["images"]


def test_split_folders_are_preferred_to_own_splits(predictor, tmp_path):
    draw_folder(tmp_path / "train", patients=2, seed=50_000)
    draw_folder(tmp_path / "test", patients=3, seed=60_000)
    assert choose_split(tmp_path, None, predictor)[0] == "test"
    assert len(choose_split(tmp_path, "train", predictor)[1]) == 4
    with pytest.raises(UserError, match=r"has no val folder and none of the \d+ images"):
        choose_split(tmp_path, "val", predictor)
    with pytest.raises(UserError, match="Unknown split"):
        choose_split(tmp_path, "tset", predictor)
    with pytest.raises(UserError, match=r"none of the .* images of the model's own test split"):
        choose_split(tmp_path / "test", "test", predictor)


def test_one_class_alone_is_an_error(predictor, xray_folder):
    data = load_splits(xray_folder)["all"].select(range(5))
    with pytest.raises(UserError, match="no readable PNEUMONIA"):
        evaluate_predictor(predictor, data)


def test_unreadable_image_is_an_error_in_a_strict_evaluation(predictor, tmp_path):
    folder = draw_folder(tmp_path / "data", patients=3)
    (folder / "NORMAL" / "broken.jpeg").write_text("text")
    with pytest.raises(UserError, match=r"1 of 7 files cannot be read.*broken.jpeg"):
        evaluate_predictor(
            predictor, load_splits(folder)["all"], config=EvaluationConfig(strict=True)
        )


def test_older_report_is_kept_without_overwrite(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="--overwrite"):
        check_folder(tmp_path, False, FILES)
    check_folder(tmp_path, True, FILES)


def test_script_writes_the_report_and_the_card(tiny_model, xray_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    flags = [
        "--model",
        model,
        "--data_dir",
        xray_folder,
        "--output_dir",
        tmp_path / "report",
        "--quick",
    ]
    done = call_script("evaluate_model.py", *flags, "--split", "test", "--add_to_card")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    card = (model / "README.md").read_text()
    assert to_text(read_interval(numbers["metrics"]["auroc"])) in card
    assert "model-index" in card
    assert Predictor.from_pretrained(model).operating_point.threshold == numbers["threshold"]


def test_unreadable_files_are_listed_in_the_report_and_in_no_metric(tiny_model, tmp_path):
    from helpers import assert_one_sentence, call_script, draw_folder

    folder = draw_folder(tmp_path / "data", patients=6)
    (folder / "NORMAL" / "IM-0002-0000.png").write_bytes(b"\x89PNG broken")
    flags = [
        "--model",
        tiny_model,
        "--data_dir",
        folder,
        "--output_dir",
        tmp_path / "report",
        "--quick",
    ]
    strict = call_script("evaluate_model.py", *flags, "--strict")
    assert_one_sentence(strict, "IM-0002-0000.png", "repair or remove")
    done = call_script("evaluate_model.py", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["n"] == 11 and report["NORMAL"] == 5
    assert len(report["unreadable"]) == 1 and "IM-0002-0000.png" in report["unreadable"][0]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "1 file could not be read" in text and "not read: NORMAL/IM-0002" in text


@pytest.fixture(scope="module")
def adults(tmp_path_factory):
    """A data set with a third class, and a metadata.csv of views and patients."""
    folder = draw_folder(tmp_path_factory.mktemp("adults"), patients=12, seed=7000)
    (folder / "OTHER").mkdir()
    for number in range(5):
        draw_xray(8000 + number, ill=bool(number % 2)).save(folder / "OTHER" / f"x{number}.png")
    (folder / "OTHER" / "torn.png").write_bytes(b"\x89PNG broken")
    rows = ["file_name,patient_id,view"]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        name = path.relative_to(folder).as_posix()
        view = "AP" if number % 3 else "PA"
        rows.append(f"{name},adult {number // 2},{'' if number == 0 else view}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


def test_subgroups_and_other_classes_are_reported_separately(tiny_model, adults, tmp_path):
    flags = [
        "--model",
        tiny_model,
        "--data_dir",
        adults,
        "--output_dir",
        tmp_path / "report",
        "--quick",
    ]
    done = call_script(
        "evaluate_model.py", *flags, "--subgroups", "view", "--other_classes", "OTHER"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["n"] == 24  # others are in no metric
    groups = {one["value"]: one for one in report["subgroups"]}
    assert groups.keys() == {"AP", "PA", "not given"}
    assert sum(one["normals"] + one["pneumonias"] for one in groups.values()) == 24
    assert groups["not given"]["metrics"] == {}  # one image

    predictor = Predictor.from_pretrained(tiny_model)
    data = load_splits(adults)["all"]
    rows = [row for row, view in enumerate(data["view"][:]) if view == "AP"]
    files = [adults / data["file"][row] for row in rows]
    probabilities = [one.probability for one in predictor.predict_files(files)]
    labels = [data["label"][row] for row in rows]
    area = roc_auc_score(labels, probabilities)
    assert groups["AP"]["metrics"]["auroc"]["value"] == pytest.approx(area, abs=1e-12)

    others = {one["name"]: one for one in report["other_classes"]}
    assert others["OTHER"]["count"] == 5
    assert sum(o["count"] for name, o in others.items() if name.startswith("OTHER, view")) == 5
    files = [adults / "OTHER" / f"x{number}.png" for number in range(5)]
    expected = [one.label for one in predictor.predict_files(files)].count("PNEUMONIA")
    assert others["OTHER"]["called"] == expected
    assert any("torn.png" in reason for reason in report["unreadable"])
    with (tmp_path / "report" / "predictions.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert [row["label"] for row in table].count("OTHER") == 5 and len(table) == 29
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| view AP |" in text and "| OTHER | 5 |" in text and "| referred |" in text


@pytest.mark.slow
def test_robustness_is_in_report_card_and_app(tiny_model, xray_folder, tmp_path):
    from pneumonia_hf.demo.about import describe_model
    from pneumonia_hf.demo.engine import Engine
    from pneumonia_hf.demo.limits import Limits

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    flags = [
        "--model",
        model,
        "--data_dir",
        xray_folder,
        "--split",
        "test",
        "--add_to_card",
        "--quick",
    ]
    done = call_script(
        "evaluate_model.py", *flags, "--robustness", 12, "--output_dir", tmp_path / "report"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    found = report["robustness"]
    assert found["images"] == 12
    gap, worst = found["shortcut_gap"], found["worst"]
    areas = {(one["name"], one["level"]): one["auroc"]["value"] for one in found["results"]}
    assert gap["value"] == pytest.approx(areas["plain", 0] - areas["frame_swap", 0.2])
    assert worst["auroc"] == min(value for (name, _), value in areas.items() if name != "plain")
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        f"**Shortcut gap {to_text(read_interval(gap))}" in text
        and "| frame swap | 0.2 share" in text
    )
    card = " ".join((model / "README.md").read_text().split())
    assert (
        f"Shortcut gap {to_text(read_interval(gap))}" in card
        and f"AUROC {worst['auroc']:.3f}" in card
    )
    shown = describe_model(Engine(Predictor.from_pretrained(model), Limits()))
    assert f"| {gap['value']:.3f} | {worst['auroc']:.3f} (" in shown


def test_only_listed_images_are_scored_also_of_other_classes(tiny_model, adults, tmp_path):
    data = load_splits(adults)["all"]
    hashes = to_hex(hash_images(data))
    labels = np.array(data["label"][:])
    rows = [*np.flatnonzero(labels == 0)[:3], *np.flatnonzero(labels == 1)[:2]]
    other = hashlib.sha256((adults / "OTHER" / "x1.png").read_bytes()).hexdigest()[:16]
    listed = tmp_path / "listed.txt"
    listed.write_text("\n".join([*(hashes[row] for row in rows), other]))
    flags = [
        "--model",
        tiny_model,
        "--data_dir",
        adults,
        "--output_dir",
        tmp_path / "report",
        "--quick",
    ]
    done = call_script("evaluate_model.py", *flags, "--images", listed, "--other_classes", "OTHER")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["NORMAL"], report["PNEUMONIA"]) == (3, 2)
    assert report["other_classes"][0]["count"] == 1
    listed.write_text("0123456789abcdef")
    done = call_script("evaluate_model.py", *flags, "--images", listed, "--overwrite")
    assert_one_sentence(done, "None of the images", "--images")
    done = call_script("evaluate_model.py", *flags, "--images", tmp_path / "no", "--overwrite")
    assert_one_sentence(done, "/no cannot be read")
    done = call_script("evaluate_model.py", *flags, "--robustness", "-5", "--overwrite")
    assert_one_sentence(done, "--robustness is -5")


def test_missing_columns_and_folders_are_one_sentence(tiny_model, adults, tmp_path):
    flags = [
        "--model",
        tiny_model,
        "--data_dir",
        adults,
        "--output_dir",
        tmp_path / "report",
        "--quick",
    ]
    done = call_script("evaluate_model.py", *flags, "--subgroups", "side")
    assert_one_sentence(done, "no column 'side'", "view")
    done = call_script("evaluate_model.py", *flags, "--other_classes", "OTHERS")
    assert_one_sentence(done, "OTHERS is no folder", "--other_classes")
    done = call_script("evaluate_model.py", *flags, "--other_classes", "NORMAL")
    assert_one_sentence(done, "one of the two classes")
    assert not (tmp_path / "report").exists()


def test_predictions_csv_holds_all_digits(predictor, xray_folder, tmp_path, monkeypatch):
    name, data = choose_split(xray_folder, "test", predictor)
    near_one = 1 - np.linspace(1, 2, len(data)) * 1e-10
    monkeypatch.setattr(Predictor, "probabilities", lambda self, images: near_one[: len(images)])
    report = evaluate_predictor(
        predictor, data, "drawn", name, config=EvaluationConfig(resamples=20)
    )
    write_report(report, tmp_path)
    with (tmp_path / "predictions.csv").open() as lines:
        written = [float(row["probability"]) for row in csv.DictReader(lines)]
    assert written == report.evaluation.probabilities.tolist()
    assert len(set(written)) == len(data)


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


def test_patients_by_file_name_are_marked(predictor, xray_folder, adults):
    named = choose_split(xray_folder, "test", predictor)[1]
    named = evaluate_predictor(predictor, named, config=EvaluationConfig(resamples=20))
    assert named.numbers["patients_by_file_name"]
    given = evaluate_predictor(
        predictor, load_splits(adults)["all"], config=EvaluationConfig(resamples=20)
    )
    assert not given.numbers["patients_by_file_name"]


def test_data_that_the_model_has_seen_is_not_external(tiny_model, xray_folder, adults, tmp_path):
    flags = ["--model", tiny_model, "--output_dir", tmp_path / "report", "--quick", "--external"]
    done = call_script("evaluate_model.py", *flags, "--data_dir", xray_folder, "--split", "test")
    assert_one_sentence(done, "are of the model's own data", "leave --external out")
    done = call_script("evaluate_model.py", *flags, "--data_dir", adults)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report" / "report.json").read_text())["external"]


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
