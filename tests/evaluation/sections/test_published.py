"""Results of others."""

import json
from dataclasses import replace

import jsonschema
import pytest
from helpers import ROOT

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.report import SCHEMA_FILE
from pneumonia_hf.evaluation.sections.published import find_published
from pneumonia_hf.evaluation.sections.published import measure as show_published
from pneumonia_hf.files import without_nan
from pneumonia_hf.reporting.page import to_markdown


def test_published_results_are_shown_for_data_of_their_size_only(report, tmp_path):
    path = ROOT / "eval_reports" / "published.yaml"
    found = find_published(path, 234, 390)
    assert "public test split" in found["data"] and len(found["results"]) >= 8
    assert all(one["source"] for one in found["results"])
    assert find_published(path, 234, 391) is None
    config = replace(report.evaluation.config, published=path)
    evaluation = replace(report.evaluation, config=config)
    shown = show_published(evaluation, {"NORMAL": 234, "PNEUMONIA": 390})
    page = replace(report.page, sections=[shown])
    assert "## Against others" in to_markdown(page, ()) and "Doerrich" in to_markdown(page, ())
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.validate(without_nan(report.numbers | shown.numbers), schema)
    assert "## Against others" not in to_markdown(report.page, ())
    (tmp_path / "other.yaml").write_text("sets: [{NORMAL: 1}]")
    with pytest.raises(UserError, match="published results"):
        find_published(tmp_path / "other.yaml", 1, 1)
