"""What the viewer asks of the server; the page itself is tested in test_page.py."""

from types import SimpleNamespace

import gradio as gr
import pytest
from helpers import draw_xray

from pneumonia_hf import Predictor
from pneumonia_hf.demo import batch_page, viewer
from pneumonia_hf.demo.batch_page import BatchStore, ShownBatch, analyse_batch
from pneumonia_hf.demo.engine import BatchRow, Engine
from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.demo.viewer import describe_opacity
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.xray import Xray
from pneumonia_hf.inference.predictor import Prediction


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


def test_an_x_ray_of_a_batch_is_opened_as_it_was_uploaded(engine, tmp_path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"x{number}.png")
        draw_xray(number, ill=True, size=(120, 100)).save(files[-1])
    batch, store = ShownBatch("x", engine.open_batch(list(map(str, files)))), BatchStore()
    for rows in engine.score(batch.batch):
        store.add(batch, rows, engine)
    files[1].unlink()  # as after KEPT_SECONDS
    held, answer = viewer._analyse(
        engine, [], make_event(number=1, path=None, example=-1, row=1), batch
    )
    assert held["name"] == "x1" and answer["width"] == 120
    assert held["prediction"].probability == pytest.approx(batch.rows[1].prediction.probability)
    for row in (3, 99):
        event = make_event(number=1, path=None, example=-1, row=row)
        assert "no longer in memory" in viewer._analyse(engine, [], event, batch)[1]["answer"]


def test_a_batch_that_is_stopped_keeps_what_is_done_and_another_can_follow(engine, tmp_path):
    path = tmp_path / "x.png"
    draw_xray(1, ill=True, size=(120, 100)).save(path)
    for stops, done in ((True, 8), (False, 20)):
        running = analyse_batch(engine, BatchStore(), [str(path)] * 20)
        value, shown, _ = next(running)
        assert (value["total"], value["rows"], value["done"]) == (20, [], False)
        if stops:
            shown.stop()
        value, shown, _ = list(running)[-1]
        assert value["done"] and len(value["rows"]) == len(shown.rows) == done


def test_the_oldest_batch_loses_its_files_first(monkeypatch):
    monkeypatch.setattr(batch_page, "describe_row", lambda *_: {})
    batches = [ShownBatch(name, None) for name in "abc"]
    store = BatchStore(most=25)
    for batch in batches:
        row = BatchRow("x", Prediction(None, None, 0.5, "REFUSED", ()), "", None, bytes(10))
        store.add(batch, [row], None)
    assert [len(batch.contents[0]) for batch in batches] == [0, 10, 10]
    with pytest.raises(UserError, match="no longer in memory"):
        batches[0].open(0, None)


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


def test_the_simulated_patient_has_an_answer_and_a_map(engine):
    event = make_event(x=0.28, y=0.35, diameter=60)
    answer = viewer._simulate(engine, event, None)
    assert (answer["width"], answer["height"]) == (376, 343)
    assert answer["text"].startswith('<div class="answer">') and 0 < answer["normal"] < 1
    (made,) = viewer._attribute(engine, event, None)["maps"]
    assert made["method"] == "cam" and made["source"].startswith("data:image/png")
