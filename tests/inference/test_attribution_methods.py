"""Each method finds what it should, and equals its result by hand."""

import numpy as np
import pytest
import torch
from helpers import TINY_SIZES, save_tiny_body
from PIL import Image, ImageDraw
from tiny_predictors import IMAGE, make_predictor, save_timm, score_more

from pneumonia_hf import Predictor
from pneumonia_hf.inference.attribution import methods_for
from pneumonia_hf.inference.attribution_methods import METHODS, cam
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.models.model_folder import DEFAULT_MODEL


@pytest.fixture
def predictor(tiny_body, backbone_name) -> Predictor:
    return make_predictor(backbone_name, tiny_body)


def plant(quarter: int | None) -> Image.Image:
    """Draw gray noise with a bright disc in one quarter, 0 to 3 by rows, or in none."""
    noise = np.random.default_rng(0).normal(90, 6, (64, 64))
    image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    if quarter is not None:
        row, column = divmod(quarter, 2)
        x, y = 16 + 32 * column, 16 + 32 * row
        ImageDraw.Draw(image).ellipse((x - 8, y - 8, x + 8, y + 8), fill=250)
    return image


def test_cam_locates_a_planted_disc(tiny_body, backbone_name):
    """The head scores the disc, and what the disc adds to the map lies on it.

    All four quarters are tested: a grid that is transposed, shifted by a prefix token or of the
    wrong width would put it elsewhere.
    """
    size = TINY_SIZES[backbone_name]
    # In a deep network one place of the map sees all of a small image.
    predictor = make_predictor(backbone_name, tiny_body, 192 if size == 64 else size)
    if "cam" not in methods_for(predictor):
        return
    score_more(predictor, plant(None), *map(plant, range(4)))

    def map_of(quarter: int | None) -> np.ndarray:
        network = predictor.network
        return METHODS["cam"](network, network.pixel_values([plant(quarter)])).numpy()

    for quarter in range(4):
        added = np.clip(map_of(quarter) - map_of(None), 0, None)
        middle = len(added) // 2
        halves = (added[:middle], added[-middle:])
        shares = [part.sum() for half in halves for part in (half[:, :middle], half[:, -middle:])]
        assert np.argmax(shares) == quarter
        assert shares[quarter] > 0.4 * sum(shares)


def test_cam_of_two_classes_sums_to_the_log_odds_without_the_bias(tmp_path):
    predictor = make_predictor("xray-cnn", save_tiny_body("xray-cnn", tmp_path))
    network, head = predictor.network, head_of(predictor.network.model)
    pixel_values = network.pixel_values([IMAGE])
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.5, 3.0]))
        expected = network.log_odds_of(pixel_values).item() - 2.5
    assert cam(network, pixel_values).sum().item() == pytest.approx(expected, abs=1e-5)


def test_cam_of_three_classes_follows_the_gradient_of_the_log_odds(tmp_path):
    """Where a class is raised at one place, the map says what that does to the log odds."""
    predictor = make_predictor("xray-cnn", save_tiny_body("xray-cnn", tmp_path))
    network = predictor.network
    model, old = network.model, head_of(predictor.network.model)
    model.classifier = torch.nn.Linear(old.in_features, 3)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.classifier.weight)
    pixel_values = network.pixel_values([IMAGE])
    seen = []
    hook = model.blocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    log_odds = network.log_odds_of(pixel_values)
    hook.remove()
    (gradient,) = torch.autograd.grad(log_odds.sum(), seen)
    by_hand = (gradient * seen[0]).sum(dim=1)[0]
    torch.testing.assert_close(cam(network, pixel_values), by_hand, atol=1e-5, rtol=1e-4)


def test_cam_of_the_default_model_has_its_places_and_a_timm_model_without_one_has_occlusion(
    tmp_path,
):
    network = Predictor.from_pretrained(DEFAULT_MODEL, device="cpu").network
    assert cam(network, network.pixel_values([IMAGE])).shape == (7, 7)
    save_timm("test_mambaout", None, tmp_path)
    assert methods_for(make_predictor("timm", tmp_path)) == ["occlusion"]


def test_occlusion_finds_the_planted_disc(tmp_path):
    predictor = make_predictor("xray-cnn", save_tiny_body("xray-cnn", tmp_path))
    score_more(predictor, plant(None), *map(plant, range(4)))
    network = predictor.network
    for quarter in range(4):
        found = METHODS["occlusion"](network, network.pixel_values([plant(quarter)]))
        assert found.shape == (7, 7)
        row, column = divmod(int(found.argmax()), 7)
        assert (row > 3, column > 3) == divmod(quarter, 2)
