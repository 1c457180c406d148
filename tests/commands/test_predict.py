"""The table that `predict` writes."""

import csv
import json
import shutil

import numpy as np
from helpers import assert_one_sentence, call_script, draw_folder, draw_xray

from pneumonia_hf import Predictor
from pneumonia_hf.inference.batch import COLUMNS, write_predictions
from pneumonia_hf.statistics.log_odds import to_logit


def test_prediction_table_has_a_row_for_every_input_in_order(tiny_model, tmp_path):
    folder = draw_folder(tmp_path / "images", patients=3)
    (folder / "NORMAL" / "IM-0001-0000.png").write_bytes(b"not an image")
    single = tmp_path / "single, with comma.png"
    draw_xray(9, ill=True).save(single)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    table = tmp_path / "out.csv"
    flags = ["--model", tiny_model, "--input", single, folder, text, "--output", table]
    done = call_script("predict.py", *flags)
    assert done.returncode == 2
    assert "2 of 8 files could not be read" in done.stderr
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert tuple(rows[0]) == ("file", *COLUMNS[1:])
    inside = sorted(str(path) for path in folder.rglob("*.png"))
    assert [row["file"] for row in rows] == [str(single), *inside, str(text)]
    for row in rows:
        if row["file"].endswith(("IM-0001-0000.png", "notes.txt")):
            assert row["probability"] == row["decision"] == ""
            assert "not an image" in row["warnings"]
        else:
            assert 0 <= float(row["probability"]) <= 1
            assert row["decision"] in {"PNEUMONIA", "NORMAL", "REFER"}

    again = call_script("predict.py", *flags)
    assert_one_sentence(again, "exists", "--overwrite")
    printed = call_script("predict.py", *flags[:-1], "-")
    assert printed.returncode == 2
    assert printed.stdout.splitlines() == table.read_text().splitlines()


def test_scores_that_fit_no_hospital_of_the_model_are_logged(tiny_model, tmp_path, caplog):
    folder = draw_folder(tmp_path / "images", patients=15)
    model = shutil.copytree(
        tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    run = json.loads((model / "run.json").read_text())
    predictor = Predictor.from_pretrained(model)
    paths = sorted(folder.rglob("*.png"))
    found = [one.probability for one in predictor.predict_files(paths, refuse=False)]
    own = np.quantile(to_logit(np.array(found)), np.linspace(0, 1, 51))
    for shift, fits in ((0, True), (50, False)):
        log_odds = dict.fromkeys(("normals", "pneumonias"), tuple(own + shift))
        of = {"normals": 40, "pneumonias": 40, "log_odds": log_odds}
        run["validation"]["hospitals"] = {"children": of}
        (model / "run.json").write_text(json.dumps(run))
        caplog.clear()
        write_predictions(Predictor.from_pretrained(model), paths, str(tmp_path / "out.csv"))
        said = "30 scores do not fit" in caplog.text and "lie below the normals" in caplog.text
        assert said != fits
