import csv
import json

import jsonschema
import numpy as np
import pytest

from pneumonia_hf import EvaluationConfig, Predictor, evaluate_predictor
from pneumonia_hf.evaluation.choose_images import choose_split
from pneumonia_hf.evaluation.report import FIGURES, SCHEMA_FILE, write_report


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
