"""What perturbed copies show of models whose behaviour is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import draw_pixels
from PIL import Image

from pneumonia_hf.evaluation.perturbations import COUNTERFACTUALS, PERTURBATIONS, perturb
from pneumonia_hf.evaluation.sections.robustness import measure_robustness
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.statistics.calibration import choose_threshold, fit_temperature
from pneumonia_hf.statistics.metrics import auroc

SIDE = 64
LABELS = np.tile([0, 1], 20)
EVERY = [(name, level) for name, one in PERTURBATIONS.items() for level in one.levels]


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
    pixels, model = draw_pixels(LABELS, SIDE), KnownModel(see_centre)
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
