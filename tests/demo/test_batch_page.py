"""A batch that is analysed, stopped, and opened again."""

from unittest.mock import patch

import gradio as gr
import pytest
from helpers import draw_xray

from pneumonia_hf import Predictor
from pneumonia_hf.demo import batch_page, viewer
from pneumonia_hf.demo.batch_page import BatchStore, ShownBatch, analyse_batch
from pneumonia_hf.demo.batch_table import to_csv
from pneumonia_hf.demo.engine import BatchRow, Engine
from pneumonia_hf.demo.limits import BUSY, Limits
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.predictor import Prediction


@pytest.fixture
def engine(tiny_model):
    return Engine(Predictor.from_pretrained(tiny_model), Limits())


def make_event(**values) -> gr.EventData:
    return gr.EventData(None, values)


def test_an_x_ray_of_a_batch_is_opened_as_it_was_uploaded(engine, tmp_path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"x{number}.png")
        draw_xray(number, ill=True, size=(120, 100)).save(files[-1])
    read = engine.open_batch(list(map(str, files)))
    batch, store = ShownBatch("x", len(read.files), read.skipped), BatchStore()
    for rows in engine.score(read):
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


def test_downloads_of_an_x_ray_in_a_zip_are_named_after_its_folders_too(engine, tmp_path):
    path = tmp_path / "x.png"
    draw_xray(1, ill=True, size=(120, 100)).save(path)
    names = {"PAT1/IM1.png": "PAT1-IM1", "1.2.840/IM1": "1.2.840-IM1", "x.png": "x"}
    none = Prediction(None, None, 0.5, "REFUSED", ())
    rows = [BatchRow(name, none, "", None) for name in names]
    batch = ShownBatch("x", 3, (), rows, contents=[path.read_bytes()] * 3)
    for row, name in enumerate(names.values()):
        event = make_event(number=1, path=None, example=-1, row=row)
        assert viewer._analyse(engine, [], event, batch)[0]["name"] == name


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


@pytest.mark.parametrize("fault", [BUSY, "The batch took longer than 60 s"])
def test_a_batch_that_is_broken_off_keeps_what_is_done_with_the_reason(engine, tmp_path, fault):
    path = tmp_path / "x.png"
    draw_xray(1, ill=True, size=(120, 100)).save(path)
    running = analyse_batch(engine, BatchStore(), [str(path)] * 20)
    for done in (0, 8):
        value, shown, _ = next(running)
        assert len(value["rows"]) == done
    if fault == BUSY:
        with patch.object(engine, "_wait", side_effect=UserError(BUSY)):
            (last,) = running
    else:
        with patch("time.monotonic", return_value=1e12):
            (last,) = running
    value, kept, stop = last
    assert fault in value["fault"] and value["done"] and not stop.visible
    assert kept is shown and len(value["rows"]) == len(kept.rows) == 8
    assert len(to_csv(kept.rows).splitlines()) == 9


def test_the_oldest_batch_loses_its_files_first(monkeypatch):
    monkeypatch.setattr(batch_page, "describe_row", lambda *_: {})
    batches = [ShownBatch(name, 1, ()) for name in "abc"]
    store = BatchStore(most=25)
    for batch in batches:
        row = BatchRow("x", Prediction(None, None, 0.5, "REFUSED", ()), "", None, bytes(10))
        store.add(batch, [row], None)
    assert [len(batch.contents[0]) for batch in batches] == [0, 10, 10]
    with pytest.raises(UserError, match="no longer in memory"):
        batches[0].open(0, None)
