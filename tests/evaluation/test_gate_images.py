"""Images for the gate: every kind is drawn, and copies differ as they should."""

import numpy as np
import pytest
import torch
from helpers import draw_xray
from PIL import Image

from pneumonia_hf.evaluation import gate_images
from pneumonia_hf.evaluation.gate_images import (
    CHANGES,
    DRAWINGS,
    HELD_OUT,
    cut_part,
    draw_phantoms,
    vary,
)
from pneumonia_hf.imaging.phantom import SIDE_ANGLES
from pneumonia_hf.inference.frontal import KINDS


@pytest.fixture(autouse=True)
def few_phantoms(monkeypatch):
    """Simulate one film of each angle."""
    monkeypatch.setattr(gate_images, "PHANTOMS", 1)


def test_the_kinds_are_those_of_the_classifier():
    drawn = {kind for kind, _ in draw_phantoms(np.random.default_rng(0))}
    assert CHANGES.keys() | DRAWINGS.keys() | drawn == set(KINDS)


@pytest.mark.parametrize("draw", [one for several in DRAWINGS.values() for one in several])
def test_drawings_are_gray_differ_and_follow_from_the_seed(draw):
    drawn, again = (
        [np.asarray(draw(random)) for _ in range(6)]
        for random in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert all(one.ndim == 2 and one.dtype == np.uint8 and min(one.shape) > 8 for one in drawn)
    assert len({one.tobytes() for one in drawn}) > 4
    assert all(map(np.array_equal, drawn, again))


def test_a_part_is_at_most_a_half_of_the_image():
    random, image = np.random.default_rng(0), Image.new("L", (200, 160))
    areas = [np.prod(cut_part(image, random).size) / (200 * 160) for _ in range(200)]
    assert max(areas) < 0.58 and min(areas) < 0.1


def test_looks_stay_images_and_leave_the_chest_where_it_is():
    random, xray = np.random.default_rng(0), draw_xray(1, ill=False, size=(96, 96))
    pixels = torch.from_numpy(np.asarray(xray).copy())[None, None].repeat(60, 1, 1, 1)
    looks = vary(pixels, random)
    assert looks.shape == pixels.shape and looks.min() >= 0 and looks.max() <= 255
    assert pixels.equal(pixels[:1].expand_as(pixels))  # those given are not changed
    upright, turned = (
        np.array([np.corrcoef(one.flatten(), look.flatten())[0, 1] for look in looks])
        for one in (pixels[0], pixels[0].rot90(1, (-2, -1)))
    )
    assert np.mean(upright > turned) > 0.9 and np.std(upright) > 0.05


def test_simulated_side_views_leave_out_the_angles_that_the_gate_is_tested_on(monkeypatch):
    asked = []

    def simulate(angle, **_):
        asked.append(angle)
        return Image.new("L", (20, 20))

    monkeypatch.setattr("pneumonia_hf.imaging.phantom.simulate_side_view", simulate)
    draw_phantoms(np.random.default_rng(0))
    assert set(HELD_OUT) < set(SIDE_ANGLES) and not set(HELD_OUT) & set(asked)
    assert {60 < angle % 180 < 120 for angle in asked} == {True, False}
