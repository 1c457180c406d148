import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from helpers import ROOT, assert_one_sentence, call_script, draw_folder
from PIL import Image

from pneumonia_hf import EvaluationConfig, Predictor, evaluate_predictor
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation import faithfulness
from pneumonia_hf.evaluation.faithfulness import Faithfulness
from pneumonia_hf.evaluation.report import FIGURES, SCHEMA_FILE, write_report
from pneumonia_hf.evaluation.sections.attribution import describe as describe_attribution
from pneumonia_hf.evaluation.sections.calibration import describe as describe_calibration
from pneumonia_hf.evaluation.sections.checklist import OPEN
from pneumonia_hf.evaluation.sections.checklist import measure as fill_checklist
from pneumonia_hf.evaluation.sections.published import find_published
from pneumonia_hf.evaluation.sections.published import measure as show_published
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.files import without_nan
from pneumonia_hf.reporting.page import to_markdown
from pneumonia_hf.statistics.calibration import measure_calibration
from pneumonia_hf.statistics.intervals import Interval


@pytest.fixture(scope="module")
def report(tiny_model, xray_folder):
    predictor = Predictor.from_pretrained(tiny_model)
    config = EvaluationConfig(resamples=20, robustness_images=8, attribution_images=2)
    data = load_splits(xray_folder)["all"]
    with pytest.MonkeyPatch.context() as patch:
        # Those with each optional number: the others take most of the time, and have own tests.
        patch.setattr(
            faithfulness,
            "methods_for",
            lambda predictor: ["gradcam", "integrated_gradients", "gradient_shap"],
        )
        return evaluate_predictor(predictor, data, "drawn", config=config)


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "report"
    write_report(report, folder)
    return folder


def test_report_json_follows_its_schema(written):
    schema = json.loads(SCHEMA_FILE.read_text())
    numbers = json.loads((written / "report.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(numbers)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(numbers | {"unknown": 1}, schema)


@pytest.mark.slow
@pytest.mark.figures
def test_the_same_report_gives_the_same_files(report, written, tmp_path):
    write_report(report, tmp_path / "again")
    names = {one.name for one in written.iterdir()}
    assert {one.name for one in (tmp_path / "again").iterdir()} == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (written / name).read_bytes(), name


def test_predictions_are_the_same_in_csv_and_parquet(written):
    import csv

    from pyarrow import parquet

    with (written / "predictions.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    table = parquet.read_table(written / "predictions.parquet").to_pylist()
    assert len(rows) == len(table) == 96
    assert [float(one["probability"]) for one in rows] == [one["probability"] for one in table]
    assert [one["file"] for one in rows] == [one["file"] for one in table]


def test_the_page_is_one_file_with_every_section_and_figure(report, written):
    page = (written / "report.html").read_text()
    text = (written / "report.md").read_text()
    titles = [section.title for section in report.page.shown]
    assert len(titles) >= 10 and "Do the attribution maps mean anything" in titles
    for title in titles:
        assert f"## {title}\n" in text
        anchor = title.lower().replace(" ", "-")
        assert f'<a href="#{anchor}">{title}</a>' in page
        assert f'<h2 id="{anchor}">{title}</h2>' in page
    assert page.count("<figure") == text.count("![") == len(report.page.figures) >= 7
    assert {one.name for one in report.page.figures} < {*FIGURES}
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "holds no X-ray" in page


def test_numbers_that_are_not_defined_are_null(report):
    numbers = report.numbers
    assert numbers["schema_version"] == 4
    assert not {"metrics_bca", "auroc_delong"} & numbers.keys()
    assert len(numbers["risk_coverage"]["risk"]) == 100
    last = numbers["risk_coverage"]["risk"][-1]
    assert last == pytest.approx(1 - numbers["metrics"]["accuracy"]["value"])


def test_a_model_of_another_project_is_scored_by_the_name_of_its_class(tiny_model, tmp_path):
    import shutil

    foreign = tmp_path / "foreign"
    shutil.copytree(tiny_model, foreign, ignore=shutil.ignore_patterns("checkpoints", "gate*"))
    for name in ("run.json", "README.md"):
        (foreign / name).unlink()
    config = json.loads((foreign / "config.json").read_text())
    del config["pneumonia_hf"]
    config["id2label"] = {"0": "healthy", "1": "lung opacity"}
    config["label2id"] = {"healthy": 0, "lung opacity": 1}
    (foreign / "config.json").write_text(json.dumps(config))
    folder = draw_folder(tmp_path / "data", patients=6)
    flags = ["--model", foreign, "--data_dir", folder, "--quick", "--output_dir", tmp_path / "r"]
    refused = call_script("evaluate_model.py", *flags)
    assert_one_sentence(refused, "healthy, lung opacity", "positive_label")
    done = call_script("evaluate_model.py", *flags, "--positive_label", "Lung Opacity")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "r" / "report.json").read_text())
    assert numbers["threshold"] == 0.5
    assert any("stores no threshold" in note for note in numbers["notes"])
    own = call_script("evaluate_model.py", "--model", tiny_model, *flags[2:-1], tmp_path / "own")
    assert own.returncode == 0, own.stderr
    area = json.loads((tmp_path / "own" / "report.json").read_text())["metrics"]["auroc"]
    assert numbers["metrics"]["auroc"] == area


@pytest.mark.slow
def test_a_sheet_of_examples_is_made_only_on_request(tiny_model, tmp_path):
    folder = draw_folder(tmp_path / "data", patients=6)
    flags = ["--model", tiny_model, "--data_dir", folder, "--quick", "--output_dir"]
    plain = call_script("evaluate_model.py", *flags, tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    assert not (tmp_path / "plain" / "examples.png").exists()
    assert "image/png" not in (tmp_path / "plain" / "report.html").read_text()
    done = call_script("evaluate_model.py", *flags, tmp_path / "shown", "--with_images")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "shown" / "report.html").read_text()
    assert page.count("data:image/png") == 1 and "holds X-rays of patients" in page
    with Image.open(tmp_path / "shown" / "examples.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 20


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


def test_the_checklist_leaves_open_what_only_people_can_say(report):
    filled = {one["topic"]: one["answer"] for one in report.numbers["checklist"]}
    assert filled["intended use, setting and users"] == OPEN
    assert filled["numbers of images, patients, classes, missing data"].startswith("96 images")
    assert f"{report.evaluation.threshold:.4f}" in filled["threshold and how it was chosen"]
    assert sum(answer == OPEN for answer in filled.values()) == 8


def test_a_report_says_so_if_no_attribution_method_passes():
    section = describe_attribution(Faithfulness((), images=5, border_area=0.36))
    assert (
        "**No method passes.**" in section.body[0]
        and section.numbers["faithfulness"]["best"] is None
    )


def test_published_results_are_shown_for_data_of_their_size_only(report, tmp_path):
    path = ROOT / "eval_reports" / "published.yaml"
    found = find_published(path, 234, 390)
    assert "public test split" in found.data and len(found.results) >= 8
    assert all(one.source for one in found.results)
    assert find_published(path, 234, 391) is None
    additions = replace(report.evaluation.additions, published=path)
    evaluation = replace(report.evaluation, additions=additions)
    shown = show_published(evaluation, {"NORMAL": 234, "PNEUMONIA": 390})
    page = replace(report.page, sections=[shown])
    assert "## Against others" in to_markdown(page, ()) and "Doerrich" in to_markdown(page, ())
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.validate(without_nan(report.numbers | shown.numbers), schema)
    assert "## Against others" not in to_markdown(report.page, ())
    (tmp_path / "other.yaml").write_text("sets: [{NORMAL: 1}]")
    with pytest.raises(UserError, match="published results"):
        find_published(tmp_path / "other.yaml", 1, 1)


def test_sites_and_a_second_model_stand_beside_the_first(tiny_model, xray_folder, tmp_path):
    away = draw_folder(tmp_path / "away", patients=8, seed=4000)
    flags = ["--model", tiny_model, "--data_dir", xray_folder, "--split", "test", "--quick"]
    done = call_script(
        "evaluate_model.py", *flags, "--external", f"far={away}", f"own={xray_folder}",
        "--compare", tiny_model, "--output_dir", tmp_path / "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    run = json.loads((tiny_model / "run.json").read_text())["data"]["parts"]
    far, own = numbers["sites"]
    assert (far["seen"], own["seen"]) == (False, True)
    assert own["in_test"] == run["test"]["images"]
    assert numbers["comparison"]["seen"]["test"] == run["test"]["images"]
    assert (far["name"], far["normals"] + far["pneumonias"], far["left_out"]) == ("far", 16, 0)
    # Of its own data only the test split is scored.
    assert own["left_out"] == run["train"]["images"] + run["validation"]["images"]
    assert own["drop"]["value"] == pytest.approx(0)
    assert numbers["external"] is False
    assert numbers["comparison"]["disagreements"] == []
    assert {one["verdict"] for one in numbers["findings"]} <= {"pass", "warn", "fail"}
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        "| far | not known | 8 | 8 |" in text
        and "| yes |" in text
        and "## Comparison" in text
        and "| shortcuts |" in text
    )
    train = call_script(
        "evaluate_model.py", *flags, "--external", away, "--compare", tmp_path / "no",
        "--output_dir", tmp_path / "other",
    )  # fmt: skip
    assert_one_sentence(train, "no", "check --compare")
    assert not list(tmp_path.glob(".*"))  # no leftovers of a mistake


def test_a_comparison_averages_over_views_for_both_models(tiny_model, tmp_path):
    folder = draw_folder(tmp_path / "data", patients=6)
    done = call_script(
        "evaluate_model.py", "--model", tiny_model, "--data_dir", folder, "--quick", "--tta",
        "--compare", tiny_model, "--output_dir", tmp_path / "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["comparison"]["differences"]["brier_balanced"]["value"] == 0


def test_steps_are_computed_once_and_again_for_other_inputs(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": np.arange(3), "names": np.array(["a", "bc"])}

    for key in ("one", "one", "two"):
        found = Steps(tmp_path / "steps", key).run("a step", compute)
        assert found["x"].tolist() == [0, 1, 2] and found["names"].tolist() == ["a", "bc"]
    assert len(calls) == 2
    steps = Steps(tmp_path / "steps", "two")
    steps.remove()
    assert not (tmp_path / "steps").exists()
    Steps().run("a step", compute)
    assert not (tmp_path / "steps").exists()


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_and_gives_the_same_report(
    tiny_model, tmp_path, monkeypatch
):
    from pneumonia_hf.evaluation.sections import robustness

    folder = draw_folder(tmp_path / "data", patients=6)
    flags = ["--model", tiny_model, "--data_dir", folder, "--resamples", 20, "--robustness", 12]
    flags += ["--attribution", 0]
    whole = call_script("evaluate_model.py", *flags, "--output_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    perturb, made = robustness.perturb, []

    def interrupt(pixels, labels, name, level, seed):
        if name == "blur" and not made.count("stopped"):
            made.append("stopped")
            raise KeyboardInterrupt
        made.append(f"{name} {level}")
        return perturb(pixels, labels, name, level, seed)

    monkeypatch.setattr(robustness, "perturb", interrupt)
    flags += ["--output_dir", tmp_path / "report"]
    stopped = call_script("evaluate_model.py", *flags)
    assert stopped.returncode == 130 and not (tmp_path / "report").exists()
    assert (tmp_path / ".report.steps").exists()
    done = call_script("evaluate_model.py", *flags)
    assert done.returncode == 0, done.stderr
    made.remove("stopped")
    assert len(made) == len(set(made)) == 41  # each kind of copies, and the control, was made once
    assert not (tmp_path / ".report.steps").exists()
    for name in ("report.json", "predictions.csv", "report.html"):
        assert (tmp_path / "report" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_scores_of_another_gate_config_or_label_are_not_taken_up(tiny_model, tmp_path):
    import shutil

    from pneumonia_hf.evaluation.scores import identify

    model = shutil.copytree(
        tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    data = load_splits(draw_folder(tmp_path / "data", patients=4))["all"]
    keys = [identify(Predictor.from_pretrained(model), data)]
    keys.append(identify(Predictor.from_pretrained(model), data))
    assert keys[0] == keys[1]
    flipped = data.map(lambda row: {"label": 1 - row["label"]})
    assert identify(Predictor.from_pretrained(model), flipped) != keys[0]
    processor = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(
        json.dumps(processor | {"image_mean": [0.4] * 3})
    )
    assert identify(Predictor.from_pretrained(model), data) != keys[0]
