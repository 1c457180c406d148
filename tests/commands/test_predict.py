"""The table that `predict` writes."""

import csv

from helpers import assert_one_sentence, call_script, draw_folder, draw_xray


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
    assert list(rows[0]) == ["file", "probability", "threshold", "decision", "warnings"]
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
