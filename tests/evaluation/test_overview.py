import json

import pytest
from helpers import assert_one_sentence, call_script
from PIL import Image

from pneumonia_hf.evaluation.overview import ModelRow, draw_overview, read_row
from pneumonia_hf.statistics.intervals import Interval


def save_report(
    folder, area: float, swapped: float | None = None, weights: str = "a", seen: int = 0
):
    folder.mkdir()
    report = {
        "seen_in_training": 0,
        "seen_in_validation": 0,
        "seen_in_test": seen,
        "weights_sha256": weights,
        "metrics": {"auroc": {"value": area, "low": area - 0.02, "high": area + 0.01}},
        "robustness": None,
    }
    if swapped is not None:
        areas = {("plain", 0.0): area, ("frame_swap", 0.1): 0.7, ("frame_swap", 0.2): swapped}
        report["robustness"] = {
            "results": [
                {"name": name, "level": level, "auroc": {"value": one, "low": one, "high": one}}
                for (name, level), one in areas.items()
            ]
        }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_models_stand_side_by_side_in_a_table_and_a_figure(tmp_path):
    home = save_report(tmp_path / "home", 0.99, 0.15)
    away = save_report(tmp_path / "away", 0.8)
    known = save_report(tmp_path / "known", 0.8, seen=3)
    plain = save_report(tmp_path / "plain", 0.97)
    output = tmp_path / "figures" / "overview.png"
    done = call_script(
        "compare_reports.py", "--output", output, "--models", f"old={home},{away}", f"new={plain}"
    )
    assert done.returncode == 0, done.stderr
    assert "| old | 0.990 | 0.150 | 0.800 | no |" in done.stdout
    assert "| new | 0.970 | - | - | - |" in done.stdout
    assert read_row(f"x={home},{known}").knows_site
    # An area without an interval, of few patients, is drawn as its mark alone.
    few = ModelRow("few", (Interval(0.9), None, None))
    (axes,) = draw_overview([few]).axes
    assert [text.get_position()[0] for text in axes.texts] == [pytest.approx(0.888)]
    with Image.open(output) as image:
        assert image.format == "PNG" and image.width > 500


def test_reports_of_different_weights_and_missing_ones_are_one_sentence(tmp_path):
    home = save_report(tmp_path / "home", 0.99)
    away = save_report(tmp_path / "away", 0.8, weights="b")
    flags = ["compare_reports.py", "--output", tmp_path / "x.png", "--models"]
    assert_one_sentence(call_script(*flags, f"a={home},{away}"), "different weights")
    assert_one_sentence(call_script(*flags, f"a={tmp_path / 'no'}"), "holds no report.json")
    assert_one_sentence(call_script(*flags, str(home)), "NAME=INTERNAL_REPORT")
    assert read_row(f"a={home}").areas[2] is None
    with pytest.raises(Exception, match="NAME="):
        read_row("=x")
