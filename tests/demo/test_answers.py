"""The answer in words."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pneumonia_hf.demo.answers import (
    describe_change,
    explain,
    find_commit,
    list_warnings,
    make_scale,
    name_model,
    to_html,
    to_percent,
)
from pneumonia_hf.inference.predictor import Prediction
from pneumonia_hf.reasons import Reason
from pneumonia_hf.statistics.scored_alike import read_reports
from pneumonia_hf.statistics.thresholds import OperatingPoint

CLOSE = Reason.TOO_CLOSE.caveat(low=0.31, high=0.74)
BINS = [
    {"images": 80, "mean_probability": 0.2, "share": 0.2, "low": 0.1, "high": 0.3},
    {"images": 90, "mean_probability": 0.9, "share": 0.9, "low": 0.8, "high": 0.95},
]


def make_engine(prevalence: float = 0.5, name: str = "a model") -> SimpleNamespace:
    predictor = SimpleNamespace(
        operating_point=OperatingPoint(0.5, 0.31, 0.74), path=None, name=name
    )
    report = {"data": "<children>", "n": 170, "prevalence": 0.5, "calibration": {"bins": BINS}}
    return SimpleNamespace(
        predictor=predictor, prevalence=prevalence, reports=[],
        scored_alike=read_reports([report]),
    )  # fmt: skip


def predict(probability: float | None, decision: str, *caveats) -> Prediction:
    label = None if probability is None else "PNEUMONIA" if probability >= 0.5 else "NORMAL"
    return Prediction(label, probability, 0.5, decision, caveats, 1.5)


def test_the_words_of_a_sure_answer():
    text = to_html(make_engine(), predict(0.996, "PNEUMONIA"), [])
    plain = re.sub("<[^>]+>", " ", text)
    assert "Looks like pneumonia" in plain
    assert re.search(
        r"99\.6%\s+probability of pneumonia \(assuming half of all X-rays show it\)", plain
    )
    for zone in ("normal below 31%", "unsure 31% to 74%", "pneumonia from 74%"):
        assert zone in plain
    assert 'class="warnings"' not in text
    # The technical figures are behind a click.
    shown, _, hidden = plain.partition("Technical figures")
    assert "0.9960" in hidden and "0.9960" not in shown
    assert "PNEUMONIA" in hidden and "PNEUMONIA" not in shown


def test_close_to_the_limit_is_said_in_plain_words():
    engine, found = make_engine(), predict(0.45, "REFER", CLOSE)
    assert list_warnings(engine, found) == [
        "Close to the limit: with other patients it could lie anywhere from 31% to 74%."
    ]
    assert "Unsure: a person must look" in to_html(engine, found, [])
    assert "would say normal, but it is too close" in explain(engine, found)


def test_an_image_unlike_the_training_images_is_not_said_to_be_close():
    """Its point may lie in the zone of a decision, far from that where a person must look."""
    found = predict(0.02, "REFER", Reason.UNLIKE.caveat())
    text = to_html(make_engine(), found, [])
    assert "More unusual than 99%" in text and "a person must look" in text
    assert "range" not in text and "Close to" not in text and "too close" not in text
    assert "but see the warning" in explain(make_engine(), found)
    assert "Test X-rays with such a score" not in text  # they were like the training images


def test_warnings_are_ordered_by_importance_and_one_is_no_plural():
    found = predict(
        0.5, "REFER", Reason.NO_THRESHOLD.caveat(), CLOSE, Reason.COLOURED.caveat(),
        Reason.UNLIKE.caveat(),
    )  # fmt: skip
    starts = [one.split()[0] for one in list_warnings(make_engine(), found)]
    assert starts == ["More", "The", "Close", "This"]
    assert "<b>Warnings</b>" in to_html(make_engine(), found, [])
    assert "<b>Warning</b>" in to_html(make_engine(), predict(0.5, "REFER", CLOSE), [])


def test_a_refused_image_has_no_number():
    found = predict(None, "REFUSED", Reason.NO_CHEST_XRAY.caveat())
    text = to_html(make_engine(), found, [])
    assert "Not read" in text and "%" not in text.partition("<details>")[0]


def test_the_prevalence_moves_what_is_shown_and_not_the_decision():
    scale = make_scale(make_engine(0.05), 0.95)
    assert scale.probability == pytest.approx(0.5)  # odds of 19 times 1/19
    assert scale.threshold == pytest.approx(0.05)
    assert scale.low < scale.threshold < scale.high < scale.probability
    text = to_html(make_engine(0.05), predict(0.9, "PNEUMONIA"), [])
    assert "assuming 5% of all X-rays show it" in text and ">32%<" in text
    assert "P(pneumonia) at a prevalence of 50%</dt><dd>0.9000" in text
    assert "32 of 100 showed pneumonia (95% interval 17 to 50), if 5 of 100 do" in text


def test_what_others_wrote_is_escaped():
    text = to_html(
        make_engine(name="<b>model"), predict(0.95, "PNEUMONIA"), [("Time", "<u>")], "<i>more"
    )
    assert "&lt;children&gt;, 170 X-rays" in text and "&lt;b&gt;model" in text
    assert "&lt;i&gt;more" in text
    assert "<children>" not in text and "<b>model" not in text and "<i>" not in text
    assert "<u>" not in text


def test_a_share_without_meaning_is_not_shown():
    """Between two bins that are far apart."""
    text = to_html(make_engine(), predict(0.5, "REFER", CLOSE), [])
    assert "Test X-rays with such a score" not in text


def test_numbers_in_words():
    assert [to_percent(one) for one in (0.0001, 0.052, 0.5, 0.9996)] == [
        "below 0.1%", "5.2%", "50%", "above 99.9%",
    ]  # fmt: skip
    assert describe_change(0.30, 0.29, 0.5) == "The probability fell by 1 point."
    assert describe_change(0.30, 0.32, 0.5) == "The probability rose by 2 points."
    assert "side of the threshold changed" in describe_change(0.49, 0.52, 0.5)
    assert name_model(make_engine().predictor) == "a model"
    for folder, commit in ((40 * "a", 40 * "a"), (40 * "g", None), ("runs", None)):
        assert find_commit(SimpleNamespace(path=Path("cache") / folder)) == commit
