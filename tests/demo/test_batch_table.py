"""A batch as a table and as CSV."""

import csv
from types import SimpleNamespace

from PIL import Image

from pneumonia_hf.demo.batch_table import COLUMNS, to_csv, to_line, to_table
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
LINES = [to_line(row, number, ENGINE) for number, row in enumerate(ROWS)]


def test_what_needs_attention_comes_first_and_no_spreadsheet_computes_a_name():
    header, *lines = csv.reader(to_csv(ROWS).splitlines())
    assert tuple(header) == COLUMNS
    names = ["'=1+1.png", "ill.png", "doubt.png", "cat.png", "<torn>.png", "well.png"]
    assert [line[0] for line in lines] == names
    assert lines[0][1:] == ["0.93", "0.5", "PNEUMONIA", "<odd>", ""]
    assert lines[3][1:] == ["", "0.5", "REFUSED", "<odd>", ""]
    assert lines[4][1:] == ["", "", "", "It is torn.", ""]
    table = to_table(LINES, 6)
    places = [table.index(f'data-index="{number}"') for number in (3, 2, 5, 4, 1, 0)]
    assert places == sorted(places)


def test_the_table_counts_decisions_and_escapes_what_others_wrote():
    text = to_table(LINES, 6)
    chips = ("all 6", "2 pneumonia", "1 unsure", "1 refused", "1 not readable", "1 normal")
    for chip in chips:
        assert f">{chip}</button>" in text
    assert "&lt;torn&gt;.png" in text and "&lt;odd&gt;" in text
    assert "<torn>" not in text and "<odd>" not in text
    assert text.count("<img") == 5 and text.count("<tr ") == 6
    assert text.count('class="open"') == 5  # what could not be read cannot be opened
    assert "REFER<" not in text and ">Unsure: a person must look</span>" in text


def test_the_table_says_how_far_it_is():
    assert "Analysing: 1 of 6 X-rays done." in to_table(LINES[:1], 6, done=False)
    assert '<progress max="6" value="1"' in to_table(LINES[:1], 6, done=False)
    stopped = to_table(LINES[:1], 6)
    assert "Stopped: 1 of 6 X-rays analysed." in stopped and "<progress" not in stopped
    assert ">6 X-rays analysed." in to_table(LINES, 6)
    assert ">1 X-ray analysed." in to_table(LINES[:1], 1)


def test_what_was_skipped_is_listed_with_the_reason():
    text = to_table(LINES, 6, [("<readme>.txt", "its name is not that of an image")])
    assert "1 file in zip files skipped" in text
    assert "&lt;readme&gt;.txt: its name is not that of an image" in text
    many = to_table(LINES, 6, [(f"{n}.txt", "why") for n in range(70)])
    assert "70 files in zip files skipped" in many and "and 20 other files" in many
