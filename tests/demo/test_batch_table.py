"""A batch as a table and as CSV."""

import csv

from PIL import Image

from pneumonia_hf.demo.batch_table import COLUMNS, to_csv, to_table
from pneumonia_hf.demo.engine import BatchRow
from pneumonia_hf.imaging.xray import Xray
from pneumonia_hf.inference.predictor import Prediction
from pneumonia_hf.reasons import Caveat, Reason


def make_row(file: str, decision: str, probability: float | None) -> BatchRow:
    prediction = Prediction(decision, probability, 0.5, decision, (Caveat(Reason.UNLIKE, "<odd>"),))
    return BatchRow(file, prediction, "", Xray(Image.new("L", (200, 100)), "L"))


ROWS = [
    make_row("well.png", "NORMAL", 0.01),
    BatchRow("<torn>.png", None, "It is torn.", None),
    make_row("ill.png", "PNEUMONIA", 0.8),
    make_row("=1+1.png", "PNEUMONIA", 0.93),
    make_row("cat.png", "REFUSED", None),
    make_row("doubt.png", "REFER", 0.52),
]


def test_what_needs_attention_comes_first_and_no_spreadsheet_computes_a_name():
    header, *lines = csv.reader(to_csv(ROWS).splitlines())
    assert tuple(header) == COLUMNS
    assert [line[0] for line in lines] == [
        "'=1+1.png", "ill.png", "doubt.png", "cat.png", "<torn>.png", "well.png",
    ]  # fmt: skip
    assert lines[0][1:] == ["0.93", "0.5", "PNEUMONIA", "<odd>", ""]
    assert lines[3][1:] == ["", "0.5", "REFUSED", "<odd>", ""]
    assert lines[4][1:] == ["", "", "", "It is torn.", ""]


def test_the_table_counts_decisions_and_escapes_what_others_wrote():
    text = to_table(ROWS, done=False)
    assert "6 images so far: 1 NORMAL, 1 not readable, 2 PNEUMONIA, 1 REFUSED, 1 REFER." in text
    assert "&lt;torn&gt;.png" in text and "&lt;odd&gt;" in text
    assert "<torn>" not in text and "<odd>" not in text
    assert text.count("<img") == 5 and text.count("<tr>") == 7
