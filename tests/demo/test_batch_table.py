"""The rows of a batch for the page and as CSV; the page itself is in test_batch_script.py."""

import csv
from types import SimpleNamespace

from PIL import Image

from pneumonia_hf.demo.batch_table import COLUMNS, describe_row, to_csv
from pneumonia_hf.demo.engine import BatchRow
from pneumonia_hf.imaging.xray import Xray
from pneumonia_hf.inference.predictor import Prediction
from pneumonia_hf.reasons import Caveat, Reason
from pneumonia_hf.statistics.thresholds import OperatingPoint

PREDICTOR = SimpleNamespace(operating_point=OperatingPoint(0.5, 0.4, 0.6))
ENGINE = SimpleNamespace(predictor=PREDICTOR, prevalence=0.5, reports=[])


def make_row(file: str, decision: str, probability: float | None) -> BatchRow:
    caveats = (Caveat(Reason.COLOURED, "<odd>"),)
    prediction = Prediction(decision, probability, 0.5, decision, caveats)
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
    names = ["'=1+1.png", "ill.png", "doubt.png", "cat.png", "<torn>.png", "well.png"]
    assert [line[0] for line in lines] == names
    assert lines[0][1:] == ["0.93", "0.5", "PNEUMONIA", "<odd>", ""]
    assert lines[3][1:] == ["", "0.5", "REFUSED", "<odd>", ""]
    assert lines[4][1:] == ["", "", "", "It is torn.", ""]


def test_a_row_is_described_in_plain_words_for_the_page():
    rows = [describe_row(row, ENGINE) for row in ROWS]
    assert [row["words"] for row in rows[:2]] == ["No pneumonia seen", "Not readable"]
    assert rows[5]["words"] == "Unsure: a person must look"
    assert (rows[3]["percent"], rows[3]["warnings"]) == ("93.0%", "<odd>")
    assert rows[1] == {"file": "<torn>.png", "decision": "", "words": "Not readable",
                       "probability": None, "percent": "", "warnings": "It is torn.",
                       "image": None}  # fmt: skip
    assert [row["image"] is None for row in rows] == [False, True, False, False, False, False]
    assert rows[4]["probability"] is None and rows[4]["percent"] == ""
