"""What perturbed copies show of models whose behaviour is known."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import call_script, draw_pixels, quick_flags
from PIL import Image

from pneumonia_hf import Predictor
from pneumonia_hf.evaluation.perturbations import COUNTERFACTUALS, PERTURBATIONS, perturb
from pneumonia_hf.evaluation.sections.robustness import measure_robustness
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.reporting.numbers import read_interval, to_text
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
    assert centre.shortcut_gap.value == 0
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


@pytest.mark.slow
def test_robustness_is_in_report_card_and_app(tiny_model, xray_folder, tmp_path):
    from pneumonia_hf.demo.about import describe_model
    from pneumonia_hf.demo.engine import Engine
    from pneumonia_hf.demo.limits import Limits

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    flags = quick_flags(model, xray_folder, tmp_path / "report")
    flags += ["--split", "test", "--add_to_card", "--robustness", 12]
    done = call_script("evaluate_model.py", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    found = report["robustness"]
    assert found["images"] == 12
    gap, worst = found["shortcut_gap"], found["worst"]
    areas = {(one["name"], one["level"]): one["auroc"]["value"] for one in found["results"]}
    assert gap["value"] == pytest.approx(areas["plain", 0] - areas["frame_swap", 0.2])
    assert worst["auroc"] == min(value for (name, _), value in areas.items() if name != "plain")
    text = (tmp_path / "report" / "report.md").read_text()
    lost = f"Shortcut gap {to_text(read_interval(gap))}"
    assert f"**{lost}" in text and "| frame swap | 0.2 share" in text
    card = " ".join((model / "README.md").read_text().split())
    assert lost in card and f"AUROC {worst['auroc']:.3f}" in card
    shown = describe_model(Engine(Predictor.from_pretrained(model), Limits()))
    assert f"| {gap['value']:.3f} | {worst['auroc']:.3f} (" in shown
