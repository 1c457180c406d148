"""The facts of an image describe it at its full size."""

import numpy as np
import pytest
from cached_xrays import decode_in
from helpers import draw_folder, draw_xray
from PIL import Image

from pneumonia_hf.data.load import load_splits


def test_facts_describe_the_full_size_image(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=2)
    white = Image.new("L", (300, 200), 255)
    white.save(folder / "NORMAL" / "white.png")
    Image.new("RGB", (90, 120), (200, 30, 30)).save(folder / "NORMAL" / "zred.png")
    split = decode_in(tmp_path / "cache", load_splits(folder)["all"]).pixels
    assert split.facts("width").tolist()[:4] == [80, 80, 300, 90]
    assert split.facts("height").tolist()[:4] == [64, 64, 200, 120]
    assert split.facts("white")[2] == 1 and split.facts("black")[2] == 0
    assert split.facts("std")[2] == 0 and split.facts("mean")[2] == 255
    assert split.facts("coloured").tolist()[:4] == [0, 0, 0, 1]
    drawn = np.asarray(draw_xray(0, ill=False))
    assert split.facts("mean")[0] == pytest.approx(drawn.mean(), abs=0.01)
    assert split.facts("std")[0] == pytest.approx(drawn.std(), abs=0.01)
    assert (split.facts("border")[2] == 255).all()
