"""The report of one image."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pneumonia_hf.demo.case_report import NOTICE, list_facts, to_html, to_pdf
from pneumonia_hf.inference.predictor import Prediction
from pneumonia_hf.reasons import Caveat, Reason
from pneumonia_hf.statistics.thresholds import OperatingPoint

PREDICTION = Prediction("PNEUMONIA", 0.7, 0.5, "PNEUMONIA", (Caveat(Reason.UNLIKE, "<odd>"),))
IMAGE = Image.linear_gradient("L")
MAP = np.linspace(0, 1, 256 * 256).reshape(256, 256)


@pytest.fixture
def engine():
    point = OperatingPoint(0.5, 0.4, 0.6)
    predictor = SimpleNamespace(operating_point=point, path=None, name="a $model$ & more")
    return SimpleNamespace(predictor=predictor, title_of=lambda method: f"{method} (not tested)")


def test_the_page_shows_the_map_only_if_there_is_one(engine):
    page = to_html(engine, PREDICTION, IMAGE, MAP, "cam")
    assert NOTICE in page and page.count("<img") == 2 and "cam (not tested)" in page
    assert "70%" in page and "40% and 60%" in page
    assert "&lt;odd&gt;" in page and "<odd>" not in page and "a $model$ &amp; more" in page
    assert "http" not in page
    plain = to_html(engine, PREDICTION, IMAGE, None, "cam")
    assert plain.count("<img") == 1 and "cam" not in plain


def test_a_refused_image_has_no_probability(engine):
    refused = Prediction(None, None, 0.5, "REFUSED", (Caveat(Reason.NO_CHEST_XRAY, "A cat."),))
    names = [name for name, _ in list_facts(engine, refused, None)]
    assert names == ["Decision", "Reservation", "Model"]


def test_the_pdf_is_one_page_whatever_the_name_of_the_model(engine):
    found = to_pdf(engine, PREDICTION, IMAGE, MAP, "cam")
    assert found.startswith(b"%PDF") and b"/Count 1" in found
    assert b"CreationDate" not in found
