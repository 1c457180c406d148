"""What the viewer asks of the server; the page itself is tested in test_page.py."""

from types import SimpleNamespace

import gradio as gr
import pytest
from helpers import draw_xray

from pneumonia_hf import Predictor
from pneumonia_hf.demo import viewer
from pneumonia_hf.demo.engine import Engine, Stopped
from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.demo.viewer import describe_opacity
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.xray import Xray


@pytest.fixture
def engine(tiny_model):
    return Engine(Predictor.from_pretrained(tiny_model), Limits())


def make_event(**values) -> gr.EventData:
    return gr.EventData(None, values)


def hold(engine) -> dict:
    xray = Xray(draw_xray(4, ill=True, size=(120, 100)), mode="L")
    return {"number": 3, "xray": xray, "prediction": engine.predict(xray, refuse=False)}


def test_only_an_upload_is_read_whatever_the_request_says(engine, tmp_path):
    secret = tmp_path / "secret.png"
    draw_xray(4, ill=True).save(secret)
    for path in (str(secret), "/etc/passwd", "../secret.png"):
        event = make_event(number=1, path=path, example=-1)
        held, answer = viewer._analyse(engine, [], event)
        assert held is None and "no upload" in answer["answer"] and "image" not in answer


def test_requests_that_are_not_of_our_page_are_refused_in_a_sentence(engine):
    found = hold(engine)
    for function, values in (
        (viewer._simulate, {"x": "0.5", "y": 0.5, "diameter": 20}),
        (viewer._simulate, None),
        (viewer._mask, {"of": 3, "border": [1], "box": [0, 0, 1, 1], "fill": "black"}),
        (viewer._explain, {"of": 3, "methods": "cam"}),
        (viewer._explain, {"of": 3, "methods": ["nothing"]}),
    ):
        with pytest.raises(UserError):
            function(engine, gr.EventData(None, values), found)
    for example in (7, -1):
        event = make_event(number=1, path=None, example=example)
        with pytest.raises(UserError):
            viewer._analyse(engine, [], event)
    for empty in (None, found | {"prediction": SimpleNamespace(probability=None)}):
        with pytest.raises(UserError):
            viewer._explain(engine, make_event(of=3, methods=["cam"]), empty)
    for function in (viewer._explain, viewer._report):  # another X-ray than the page shows
        with pytest.raises(UserError, match="no longer holds"):
            function(engine, make_event(of=2, methods=["cam"], format="html"), found)


def test_numbers_of_a_request_are_bounded(engine):
    wild = make_event(x=-1e9, y=float("nan"), diameter=1e9)
    place, diameter = viewer._read_opacity(wild)
    assert place == (0, 0) and diameter == viewer.MOST_DIAMETER
    answer = viewer._mask(engine, make_event(of=3, border=9, box=[], fill="?"), hold(engine))
    assert answer["image"].startswith("data:image/jpeg")


def test_a_part_that_hides_nothing_asks_the_model_nothing(engine, monkeypatch):
    found = hold(engine)
    monkeypatch.setattr(engine, "predict", None)
    answer = viewer._mask(
        engine, make_event(of=3, border=0, box=[0.5, 0, 0.5, 1], fill="gray"), found
    )
    assert answer["before"] == found["prediction"].probability


@pytest.mark.parametrize(
    ("inside", "probability", "words"),
    [
        (True, 0.7, "In a lung: the probability rose by 60 points."),
        (True, 0.05, "In a lung: the probability fell by 5 points."),
        (True, 0.11, "In a lung: the probability hardly moved."),
        (False, 0.11, "Outside of the lungs: the answer did not move, as it should be."),
        (False, 0.4, "it rose by 30 points, a warning sign."),
    ],
)
def test_the_page_says_whether_the_answer_moved_and_whether_it_should_have(
    inside, probability, words
):
    assert describe_opacity(inside, 0.1, probability).endswith(words)


def test_a_map_that_is_no_longer_wanted_is_not_computed_to_its_end(engine):
    asked = []

    def is_wanted() -> bool:
        asked.append(True)
        return len(asked) < 3

    image = hold(engine)["xray"].image
    with pytest.raises(Stopped):
        engine.attribute(image, "occlusion", is_wanted)
    assert len(asked) == 3  # of 17 forward passes
    assert engine.attribute(image, "cam").values.shape == (100, 120)  # nothing of it is left
    found, event = hold(engine), make_event(of=3, number=7, methods=["occlusion"])
    viewer._stop(make_event(number=7), found)
    assert viewer._explain(engine, event, found) == {"maps": []}
    event = make_event(of=3, number=8, methods=["cam"])
    assert len(viewer._explain(engine, event, found)["maps"]) == 1


def test_the_simulated_patient_has_an_answer_and_a_map(engine):
    event = make_event(x=0.28, y=0.35, diameter=60)
    answer = viewer._simulate(engine, event, None)
    assert (answer["width"], answer["height"]) == (376, 343)
    assert answer["text"].startswith('<div class="answer">') and 0 < answer["normal"] < 1
    (made,) = viewer._attribute(engine, event, None)["maps"]
    assert made["method"] == "cam" and made["source"].startswith("data:image/png")
