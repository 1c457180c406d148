"""Test-time augmentation: its positions, the mean over them, and what it warns about."""

import numpy as np
import pytest
import torch
from helpers import draw_xray
from PIL import Image

from pneumonia_hf import Predictor
from pneumonia_hf.imaging.preprocess import make_processor, normalise, resize
from pneumonia_hf.inference.network import CONFIG_KEY, Network
from pneumonia_hf.inference.tta import (
    TTA_TRANSFORMS,
    TtaTransform,
    apply_transform,
)
from pneumonia_hf.reasons import Reason

IMAGES = [draw_xray(seed, ill=seed % 2 == 0, size=(70 + 9 * seed, 90)) for seed in range(12)]


def test_log_odds_with_tta_are_the_mean_over_the_image_and_its_views(tiny_model):
    plain = Predictor.from_pretrained(tiny_model)
    averaged = Predictor.from_pretrained(tiny_model, tta=True)
    pixel_values = plain.network.pixel_values(IMAGES)
    black = plain.network.pixel_values([Image.new("L", (9, 9))])
    views = [pixel_values, *(apply_transform(pixel_values, view, black) for view in TTA_TRANSFORMS)]
    with torch.inference_mode():
        logits = torch.stack(
            [plain.network.model(pixel_values=view).logits for view in views]
        ).double()
    log_odds = (logits[..., 1] - logits[..., 0]).numpy()
    # The image itself is scored as without augmentation, bit for bit.
    assert np.array_equal(log_odds[0], plain.log_odds(IMAGES))
    assert np.abs(averaged.log_odds(IMAGES) - log_odds.mean(axis=0)).max() < 1e-9
    assert np.abs(averaged.log_odds(IMAGES) - plain.log_odds(IMAGES)).max() > 1e-4
    in_batches_of_one = np.concatenate([averaged.log_odds([image]) for image in IMAGES])
    assert np.abs(in_batches_of_one - averaged.log_odds(IMAGES)).max() < 1e-5
    assert averaged.log_odds([]).shape == (0,)


def find_spot(pixels: torch.Tensor) -> tuple[float, float]:
    """Return the position of the brightest place from the centre: right, down."""
    weights = pixels[0, 0].clamp(min=0).double()
    height, width = weights.shape
    y = torch.arange(height) + 0.5 - height / 2
    x = torch.arange(width) + 0.5 - width / 2
    total = weights.sum()
    return float((weights.sum(0) * x).sum() / total), float((weights.sum(1) * y).sum() / total)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (TtaTransform(), (20, 0)),
        (TtaTransform(right=0.1), (30, 0)),
        (TtaTransform(down=0.1), (20, 5)),
        (TtaTransform(zoom=1.5), (30, 0)),
        (TtaTransform(zoom=0.5, right=0.1), (20, 0)),
        (TtaTransform(degrees=30), (17.32, 10)),
    ],
)
def test_transform_rotates_clockwise_zooms_and_shifts(view, expected):
    pixels = torch.zeros(1, 3, 50, 100)
    pixels[:, :, 23:27, 68:72] = 200.0
    black = torch.zeros(1, 3, 1, 1)
    moved = apply_transform(pixels, view, black)
    assert moved.shape == pixels.shape
    assert find_spot(moved) == pytest.approx(expected, abs=0.1)


def test_transforms_before_and_after_normalisation_are_equal():
    processor = make_processor(64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    gray = resize(IMAGES[:3], processor)
    black = normalise(torch.zeros(1, 1, 1, 1), processor)
    for view in TTA_TRANSFORMS:
        before = apply_transform(gray.float(), view, torch.zeros(1))
        after = apply_transform(normalise(gray, processor), view, black)
        if view.degrees or view.zoom < 1:
            assert before.min() == 0  # black from outside of the image
        assert torch.allclose(normalise(before, processor), after, atol=1e-4)
        assert abs(view.degrees) <= 3 and abs(view.zoom - 1) < 0.051
        assert max(abs(view.right), abs(view.down)) <= 0.02


def test_predictions_with_tta_warn_about_it_and_the_threshold(tiny_model):
    predictor = Predictor.from_pretrained(tiny_model, tta=True)
    plain = Predictor.from_pretrained(tiny_model)
    assert predictor.operating_point == plain.operating_point
    assert predictor.predict(IMAGES[0]).warnings[-2:] == (
        Reason.TTA_ON.value,
        Reason.TTA_STRANGE.value,
    )
    settings = getattr(predictor.network.model.config, CONFIG_KEY)
    setattr(predictor.network.model.config, CONFIG_KEY, settings | {"tta": True})
    for tta, reason in ((True, Reason.TTA_ON), (False, Reason.TTA_MISSED)):
        model = Predictor(Network(predictor.network.model, predictor.network.processor), tta=tta)
        assert model.caveats == (reason.caveat(),)
