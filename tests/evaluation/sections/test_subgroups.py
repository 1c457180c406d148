"""Groups of metadata, and other classes."""

import csv
import json

import pytest
from helpers import call_script, quick_flags
from sklearn.metrics import roc_auc_score

from pneumonia_hf import Predictor
from pneumonia_hf.data.load import load_splits


def test_subgroups_and_other_classes_are_reported_separately(tiny_model, adults, tmp_path):
    flags = quick_flags(tiny_model, adults, tmp_path / "report")
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
