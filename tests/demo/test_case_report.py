"""The report of one image."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pneumonia_hf.demo.case_report import NOTICE, View, to_html, to_pdf
from pneumonia_hf.inference.predictor import Prediction
from pneumonia_hf.reasons import Caveat, Reason
from pneumonia_hf.statistics.thresholds import OperatingPoint

PREDICTION = Prediction("PNEUMONIA", 0.7, 0.5, "PNEUMONIA", (Caveat(Reason.COLOURED, "<odd>"),))
IMAGE = Image.linear_gradient("L")
MAP = np.linspace(0, 1, 256 * 256).reshape(256, 256)
SHOWN = View(100, 80, True, 40, "cam", MAP)


@pytest.fixture
def engine():
    point = OperatingPoint(0.5, 0.4, 0.6)
    predictor = SimpleNamespace(operating_point=point, path=None, name="a $model$ & more")
    return SimpleNamespace(
        predictor=predictor, prevalence=0.5, reports=[], scored_alike=[],
        title_of=lambda method: method.upper(),
        verdict_of=lambda method: "not tested",
    )  # fmt: skip


def test_the_page_shows_the_map_only_if_there_is_one(engine):
    page = to_html(engine, PREDICTION, IMAGE, SHOWN)
    assert NOTICE in page and page.count("<img") == 2 and "CAM (not tested)" in page
    assert "70%" in page and "unsure 40% to 60%" in page
    assert "level 100, window 80, inverted, map at 40%" in page
    assert "&lt;odd&gt;" in page and "<odd>" not in page and "a $model$ &amp; more" in page
    assert "http" not in page
    plain = to_html(engine, PREDICTION, IMAGE, View())
    assert plain.count("<img") == 1 and "CAM" not in plain and "locate" not in plain


def test_the_image_is_drawn_as_the_viewer_shows_it():
    gray = np.asarray(View().draw(IMAGE, with_map=False))[:, 0, 0].astype(int)
    assert np.abs(gray - np.asarray(IMAGE)[:, 0]).max() <= 1
    # slope 255/80 about the level 100, then inverted: as of levels() in viewer.js.
    changed = np.asarray(View(100, 80, True).draw(IMAGE, with_map=False))[:, 0, 0].astype(int)
    assert changed[0] == 255 and changed[100] in (127, 128) and changed[141] == 0
    strong, weak = (
        np.asarray(View(opacity=one, method="cam", values=MAP).draw(IMAGE, with_map=True), int)
        for one in (100, 10)
    )
    assert np.ptp(strong, axis=2).max() > 4 * np.ptp(weak, axis=2).max() > 0


def test_a_refused_image_has_no_probability(engine):
    refused = Prediction(None, None, 0.5, "REFUSED", (Caveat(Reason.NO_CHEST_XRAY, "A cat."),))
    page = to_html(engine, refused, IMAGE, View())
    assert "A cat." in page and "%" not in re.sub("(?s)<style>.*</style>", "", page)
    assert to_pdf(engine, refused, IMAGE, View()).startswith(b"%PDF")


def test_the_pdf_is_one_page_whatever_the_name_of_the_model(engine):
    for shown in (SHOWN, View()):
        found = to_pdf(engine, PREDICTION, IMAGE, shown)
        assert found.startswith(b"%PDF") and b"/Count 1" in found
        assert b"CreationDate" not in found


def test_the_pdf_has_room_for_a_note_also_with_many_warnings(engine, monkeypatch):
    from matplotlib.figure import Figure

    boxes = []
    add_axes = Figure.add_axes
    monkeypatch.setattr(
        Figure, "add_axes", lambda self, box: boxes.append(box) or add_axes(self, box)
    )
    caveats = tuple(Caveat(Reason.COLOURED, "A warning of some length. " * 5) for _ in range(4))
    tall = IMAGE.resize((200, 480))
    to_pdf(engine, Prediction("PNEUMONIA", 0.7, 0.5, "REFER", caveats), tall, SHOWN)
    (_, bottom, width, height) = boxes[-1]
    assert bottom == pytest.approx(0.04) and height > 0.08 and width > 0.8
    to_pdf(engine, PREDICTION, IMAGE, SHOWN)
    images, note = boxes[-4:-2], boxes[-1]
    # The page is filled: from the top to the note at its foot.
    assert images[0][1] + images[0][3] > 0.85 and note[1] == pytest.approx(0.04)


def test_the_pdf_is_drawn_also_if_text_leaves_no_room_for_images(engine):
    from matplotlib.figure import Figure

    from pneumonia_hf.demo.case_report import _draw_images

    assert _draw_images(Figure(), [("X-ray", IMAGE)], room=-0.1) < 0.88
