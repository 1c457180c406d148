"""Perturbations, and what they show of models whose behaviour is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import draw_xray
from PIL import Image

from pneumonia_hf.evaluation.perturbations import (
    COUNTERFACTUALS,
    PERTURBATIONS,
    SOFT_EDGE,
    Context,
    draw_glyphs,
    match_histogram,
    perturb,
    remove_markers,
    soft_window,
)
from pneumonia_hf.evaluation.robustness import measure_robustness
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.statistics.calibration import choose_threshold, fit_temperature
from pneumonia_hf.statistics.metrics import auroc

SIDE = 64
LABELS = np.tile([0, 1], 20)
EVERY = [(name, level) for name, one in PERTURBATIONS.items() for level in one.levels]


def draw_pixels() -> np.ndarray:
    images = [draw_xray(seed, bool(label), (SIDE, SIDE)) for seed, label in enumerate(LABELS)]
    return np.stack([np.asarray(image)[None] for image in images])


class KnownModel:
    """A predictor whose log odds are the mean of a part of the image."""

    def __init__(self, part) -> None:
        self.part = part
        processor = make_processor(SIDE, [0.5] * 3, [0.5] * 3)
        self.networks = [SimpleNamespace(processor=processor, path=None)]
        self.operating_point = SimpleNamespace(threshold=0.5)

    def log_odds(self, images: list[Image.Image]) -> np.ndarray:
        return np.array([self.part(np.asarray(image, float)) for image in images])


def see_frame(image: np.ndarray) -> float:
    # Between 12% and 16% of the height: a frame of 10% leaves it, one of 20% replaces it.
    return (np.concatenate([image[8:10].ravel(), image[-10:-8].ravel()]).mean() - 100) / 10


def see_centre(image: np.ndarray) -> float:
    return (image[24:40, 24:40].mean() - 100) / 10


def draw_shortcut() -> list[Image.Image]:
    """Draw images that show their class both at the border and in the centre, with noise."""
    generator = np.random.default_rng(0)
    drawn = []
    for label in LABELS:
        image = generator.normal(100, 5, (SIDE, SIDE))
        image[:12] += 40 * label - 20
        image[-12:] += 40 * label - 20
        image[20:44, 20:44] += 20 * label - 10
        drawn.append(Image.fromarray(image.clip(0, 255).astype(np.uint8)))
    return drawn


@pytest.mark.parametrize(("name", "level"), EVERY)
def test_perturbation_is_repeatable_and_changes_every_kind_of_image(name, level):
    pixels = draw_pixels()
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
    pixels = draw_pixels()
    for name in ("frame_swap", "frame_black", "noise", "blur", "jpeg", "crop", "resolution"):
        distances = [
            np.abs(perturb(pixels, LABELS, name, level).astype(float) - pixels).mean()
            for level in PERTURBATIONS[name].levels
        ]
        assert distances == sorted(distances), name


def test_soft_window_equals_the_ramps_by_hand():
    window = soft_window(100, 50, torch.tensor([[0.2, 0.1, 0.0, 0.0]]))[0, 0]
    assert window.shape == (100, 50)
    assert (window == window[:, :1]).all()  # no margin at the sides
    rows = window[:, 0]
    # A margin of 20 rows with an edge of 4: half way at row 20, that is between 19 and 20.
    assert SOFT_EDGE == 0.04
    assert rows[18:22].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=1e-5)
    assert rows[:18].sum() == 0 and (rows[22:88] == 1).all() and rows[92:].sum() == 0


@pytest.mark.parametrize("name", ["frame_swap", "frame_black", "frame_blur"])
def test_frame_leaves_the_inner_part_as_it_is(name):
    pixels = draw_pixels()
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
    pixels = np.arange(10, 250, 40, dtype=np.uint8)[:, None, None, None] + np.zeros(
        (1, 1, SIDE, SIDE), np.uint8
    )
    corners = perturb(pixels, [1] * 6, "frame_swap", 0.2)[:, 0, 0, 0]
    assert sorted(corners) == sorted(pixels[:, 0, 0, 0])


def test_histogram_becomes_that_of_the_donor():
    own, donor = (torch.rand(1, 1, 16, 16) * scale for scale in (50, 255))
    found = match_histogram(own, 1.0, Context(donor, torch.Generator()))
    assert torch.equal(found.flatten().sort().values, donor.flatten().sort().values)
    assert torch.equal(found.flatten().argsort(), own.flatten().argsort())


def test_small_bright_marks_in_the_outer_part_are_removed_and_nothing_else():
    pixels = torch.full((1, 1, 100, 100), 60.0)
    pixels[..., 40:90, 30:70] = 200  # large, like a heart
    clean = pixels.clone()
    pixels[..., 5:10, 5:10] = 250
    pixels[..., 50, 20] = 250  # small, but in the inner part
    found = remove_markers(pixels, 0.15)
    assert torch.equal(found[..., :15, :15], clean[..., :15, :15])
    assert found[..., 50, 20] == 250
    assert torch.equal(found[..., 40:90, 30:70], clean[..., 40:90, 30:70])


def test_every_text_is_drawn():
    glyphs = draw_glyphs()
    assert (glyphs.amax((1, 2, 3)) > 0.8).all()
    assert ((glyphs > 0.5).float().mean((1, 2, 3)) > 0.02).all()
    assert (glyphs[..., 0, :] == 0).all()  # or the border of a glyph would be smeared


def test_model_that_reads_the_frame_has_a_shortcut_gap_and_one_that_reads_the_centre_has_none():
    images, patients = draw_shortcut(), [str(row) for row in range(len(LABELS))]
    frame, centre = (
        measure_robustness(KnownModel(part), images, LABELS, patients, resamples=50)
        for part in (see_frame, see_centre)
    )
    assert frame.results[0].auroc.value == centre.results[0].auroc.value == 1
    assert frame.shortcut_gap.value == pytest.approx(1)  # it follows the frame of the other class
    assert centre.shortcut_gap.value == 0 and centre.shortcut_gap.high == 0
    assert frame.worst.auroc.value == 0
    # A frame of 5% is outside of what it sees.
    assert [gap.value for gap in frame.swap_gaps.values()] == [0, pytest.approx(0), 1]
    # With the centre of the other class, the reader of the centre follows it.
    assert frame.control.auroc.value == 1 and centre.control.auroc.value == 0
    assert "centre_swap" not in {one.name for one in centre.results}
    swapped = next(one for one in frame.results if (one.name, one.level) == ("frame_swap", 0.2))
    assert swapped.flipped == 1
    assert swapped.sensitivity.value == swapped.specificity.value == 0
    assert len(frame.results) == 1 + len(EVERY) and frame.images == len(LABELS)
    areas = {(one.name, one.level): one.auroc.value for one in frame.results}
    expected = [areas["plain", 0], *(areas[one] for one in COUNTERFACTUALS)]
    assert frame.robust_auroc == pytest.approx(np.mean(expected))


def test_copies_like_those_of_the_training_are_marked(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps(
            {
                "augmentation": {"augment_strength": 1, "augment_frame": 0.5, "augment_blur": 0},
                "training": {"metric_for_best_model": "robust_auroc"},
            }
        )
    )
    images, patients = draw_shortcut(), [str(row) for row in range(len(LABELS))]
    model = KnownModel(see_centre)
    model.networks[0].path = tmp_path
    found = measure_robustness(model, images, LABELS, patients, resamples=20)
    trained = {one.name for one in found.results if one.trained}
    assert trained == {"frame_swap", "frame_black", "frame_blur"}
    selected = {(one.name, one.level) for one in found.results if one.selected}
    assert selected == set(COUNTERFACTUALS)
    (tmp_path / "run.json").write_text('{"augmentation": {"augment_strength": 0}}')
    found = measure_robustness(model, images, LABELS, patients, resamples=20)
    assert not any(one.trained or one.selected for one in found.results)


def test_scores_of_copies_equal_those_by_hand():
    pixels, model = draw_pixels(), KnownModel(see_centre)
    images = [Image.fromarray(one[0]) for one in pixels]
    found = measure_robustness(model, images, LABELS, range(len(LABELS)), resamples=5)
    copies = perturb(pixels, LABELS, "crop", 0.8)
    expected = auroc(LABELS, np.array([see_centre(one[0].astype(float)) for one in copies]), 0)
    (crop,) = (one for one in found.results if (one.name, one.level) == ("crop", 0.8))
    assert crop.auroc.value == pytest.approx(expected)


def test_threshold_is_the_best_for_the_worst_kind_of_copies():
    # A threshold of 0.2..0.5 separates the plain images, and calls all copies positive. One of
    # 0.6..0.8 separates the copies, and misses two of the 20 plain pneumonias.
    labels, patients = [0] * 20 + [1] * 20, range(40)
    plain = [0.2] * 20 + [0.5] * 2 + [0.8] * 18
    copies = [0.6] * 20 + [0.8] * 20
    alone = choose_threshold(labels, plain, patients, resamples=20)
    both = choose_threshold(labels, np.array([plain, copies]), patients, resamples=20)
    assert 0.2 < alone.threshold < 0.5
    assert 0.6 < both.threshold < 0.8


def test_one_kind_of_copies_changes_nothing():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 200)
    log_odds = generator.normal(2 * labels - 1, 2)
    probabilities = 1 / (1 + np.exp(-log_odds))
    one = choose_threshold(labels, probabilities, range(200), 0.9)
    assert one == choose_threshold(labels, np.stack([probabilities] * 3), range(200), 0.9)
    alone, three = (fit_temperature(labels, x) for x in (log_odds, np.stack([log_odds] * 3)))
    assert alone.value == pytest.approx(three.value)
