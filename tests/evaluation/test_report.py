import csv
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from pneumonia_hf import EvaluationConfig, Predictor, evaluate_predictor
from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.evaluation.choose_images import choose_split
from pneumonia_hf.evaluation.report import FIGURES, SCHEMA_FILE, write_predictions, write_report
from pneumonia_hf.evaluation.subgroups import ScoredOthers
from pneumonia_hf.inference.predictor import Prediction


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


def test_images_of_neither_class_have_their_metadata_too(by_hand, tmp_path):
    rows = by_hand.scores.rows
    for name in ("view", "source", "source_"):
        rows = rows.add_column(name, [f"{name} {row}" for row in range(len(rows))])
    cells = {"patient_id": "p9", "view": "AP", "source": "ward", "label": "OTHER", "more": "x"}
    others = ScoredOthers(rows=(
        (OtherImage(Path("a"), "OTHER/a.png", "OTHER", cells),
         Prediction("NORMAL", 0.25, 0.5, "REFER", (), distance=1.5)),
        (OtherImage(Path("b"), "OTHER/b.png", "OTHER", {}),
         Prediction("NORMAL", 0.25, 0.5, "NORMAL", ())),
    ))  # fmt: skip
    scores = replace(by_hand.scores, rows=rows)
    write_predictions(replace(by_hand, scores=scores, others=others), tmp_path)
    with (tmp_path / "predictions.csv").open() as lines:
        *_, first, second = csv.DictReader(lines)
    assert first == {
        "file": "OTHER/a.png", "patient": "p9", "label": "OTHER", "probability": "0.25",
        "decision": "REFER", "gate_distance": "1.5", "view": "AP", "source": "source 0",
        "source_": "ward",
    }  # fmt: skip
    empty = ("patient", "gate_distance", "view", "source_")
    assert [second[name] for name in empty] == [""] * 4 and second["decision"] == "NORMAL"


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


def test_what_a_model_does_wrong_on_the_phantom_is_a_reservation(report):
    failures, summary = report.numbers["phantom"]["failures"], report.page.summary
    found = [one for one in (*summary.reservations, *summary.more) if "simulated" in one]
    assert found == [f"On simulated opacities in one patient: {' '.join(failures)}"] * bool(
        failures
    )
    assert failures  # of a tiny model on drawn images


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
