"""Examples: those built in, a hospital's own, and the simulated opacity."""

import numpy as np
import pytest
from helpers import draw_xray

from pneumonia_hf import Predictor
from pneumonia_hf.demo import examples
from pneumonia_hf.demo.engine import Engine
from pneumonia_hf.demo.examples import (
    find_folder,
    is_in_lung,
    list_examples,
    simulate_opacity,
)
from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.errors import SettingError
from pneumonia_hf.imaging.phantom import OUTSIDE, ZONES


@pytest.fixture
def engine(tiny_model):
    return Engine(Predictor.from_pretrained(tiny_model), Limits(upload_mb=1))


def test_built_in_examples_can_be_read_and_say_which_are_simulated(engine):
    found = list_examples(engine, None)
    assert [one.open().image.mode for one in found] == ["L"] * 4
    assert [one.title for one in found if "simulated" not in one.note] == ["Another disease"]
    normal, ill = (np.asarray(one.open().image, float) for one in found[:2])
    assert np.abs(ill - normal).max() > 50
    assert examples.REAL.stat().st_size < 60_000


def test_a_folder_of_examples_is_sorted_bounded_and_leaves_out_what_cannot_be_read(
    engine, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(examples, "MOST", 2)
    for name in ("c.png", "a.png", "b.png"):
        draw_xray(4, ill=True, size=(100, 80)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("notes")
    (tmp_path / "aa.png").write_bytes(b"\x89PNG torn")
    (tmp_path / ".b.png").write_bytes(b"hidden")
    found = list_examples(engine, tmp_path)
    assert [one.title for one in found] == ["a", "b"]
    assert found[1].open().image.size == (100, 80)
    assert "aa.png" in caplog.text and "more than 2 images" in caplog.text


def test_the_setting_must_be_a_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("EXAMPLES", raising=False)
    assert find_folder() is None
    monkeypatch.setenv("EXAMPLES", f" {tmp_path}\n")
    assert find_folder() == tmp_path
    monkeypatch.setenv("EXAMPLES", str(tmp_path / "none"))
    with pytest.raises(SettingError, match="EXAMPLES is"):
        find_folder()


def test_an_opacity_changes_the_lung_or_only_what_is_beside_it():
    assert all(is_in_lung(place) for place in ZONES.values())
    assert not any(is_in_lung(place) for place in [*OUTSIDE.values(), (0, 0), (1, 1)])
    lung = examples.phantom.lung_mask()
    plain = np.asarray(simulate_opacity((0.5, 0.5), 0)[0].image)
    for place, inside in ((ZONES["left middle"], True), (OUTSIDE["abdomen"], False)):
        xray, said = simulate_opacity(place, 50)
        changed = np.asarray(xray.image) != plain
        assert said is inside and changed.sum() > 500
        assert not (changed & (lung if not inside else ~lung)).any()
