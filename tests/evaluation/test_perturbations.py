"""The table of perturbations: repeatable, graded, with donors of the other class."""

import numpy as np
import pytest
from helpers import draw_pixels

from pneumonia_hf.evaluation.perturbations import PERTURBATIONS, perturb

SIDE = 64
LABELS = np.tile([0, 1], 20)
EVERY = [(name, level) for name, one in PERTURBATIONS.items() for level in one.levels]


@pytest.mark.parametrize(("name", "level"), EVERY)
def test_perturbation_is_repeatable_and_changes_every_kind_of_image(name, level):
    pixels = draw_pixels(LABELS, SIDE)
    if name.startswith("marker"):
        pixels[:, 0, 4:8, 4:8] = 255  # a mark that can be removed
    before = pixels.copy()
    once, again = (perturb(pixels, LABELS, name, level) for _ in range(2))
    assert (pixels == before).all()
    assert once.dtype == np.uint8 and once.shape == pixels.shape
    assert (once == again).all()
    if level == PERTURBATIONS[name].levels[-1]:
        assert (once != pixels).mean(axis=(1, 2, 3)).min() > 0


def test_severity_grows_with_the_level():
    pixels = draw_pixels(LABELS, SIDE)
    for name in ("frame_swap", "frame_black", "noise", "blur", "jpeg", "crop", "resolution"):
        distances = [
            np.abs(perturb(pixels, LABELS, name, level).astype(float) - pixels).mean()
            for level in PERTURBATIONS[name].levels
        ]
        assert distances == sorted(distances), name


@pytest.mark.parametrize("name", ["frame_swap", "frame_black", "frame_blur"])
def test_frame_leaves_the_inner_part_as_it_is(name):
    pixels = draw_pixels(LABELS, SIDE)
    changed = perturb(pixels, LABELS, name, 0.2)
    inner = slice(round(0.23 * SIDE), round(0.77 * SIDE))
    assert (changed[..., inner, inner] == pixels[..., inner, inner]).all()
    assert (changed[..., :8, :] != pixels[..., :8, :]).mean() > 0.5


def test_donors_are_of_the_other_class():
    levels = np.where(LABELS == 1, 200, 20).astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (len(LABELS), 1, SIDE, SIDE)).copy()
    corners = perturb(pixels, LABELS, "frame_swap", 0.2)[:, 0, 0, 0]
    assert corners.tolist() == np.where(LABELS == 1, 20, 200).tolist()


def test_images_of_one_class_have_each_other_as_donors():
    # More images than are changed at a time.
    pixels = np.arange(10, 240, 3, dtype=np.uint8)[:, None, None, None] + np.zeros(
        (1, 1, SIDE, SIDE), np.uint8
    )
    corners = perturb(pixels, [1] * len(pixels), "frame_swap", 0.2)[:, 0, 0, 0]
    assert sorted(corners) == sorted(pixels[:, 0, 0, 0])
