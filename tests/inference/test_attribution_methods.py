"""Each method finds what it should, and equals its result by hand."""

import numpy as np
import pytest
import torch
from helpers import TINY_SIZES, save_tiny_body
from PIL import Image, ImageDraw
from tiny_predictors import IMAGE, make_predictor, save_timm, score_more

from pneumonia_hf import Predictor
from pneumonia_hf.inference.attribution import attribute
from pneumonia_hf.inference.attribution_methods import METHODS
from pneumonia_hf.inference.network import Network
from pneumonia_hf.models.backbones import BACKBONES
from pneumonia_hf.models.model_folder import DEFAULT_MODEL

WITH_GRADCAM = sorted(name for name, one in BACKBONES.items() if one.features)


with_gradcam = pytest.mark.families(*WITH_GRADCAM)


# Pixels a side of the image for each place of the last feature map.
STRIDES = dict.fromkeys(BACKBONES, 32) | {
    "vit-base": 8,  # the patches of the tiny models
    "deit-small": 8,
    "dinov2-small": 7,
    "swin-tiny": 16,
    "xray-cnn": 4,
}


def gradcam_of(predictor: Predictor) -> torch.Tensor:
    network = predictor.network
    return METHODS["gradcam"](network, network.pixel_values([IMAGE])).values


@pytest.fixture
def predictor(tiny_body, backbone_name) -> Predictor:
    return make_predictor(backbone_name, tiny_body)


@with_gradcam
def test_gradcam_has_one_value_for_each_place_of_the_feature_map(predictor, backbone_name):
    attribution_map = gradcam_of(predictor)
    side = TINY_SIZES[backbone_name] // STRIDES[backbone_name]
    assert attribution_map.shape == (side, side)
    score_more(predictor, Image.new("L", (64, 64), 90), IMAGE)
    attribution_map = gradcam_of(predictor)
    assert attribution_map.max() > 0
    assert attribution_map.std() > 0.01 * attribution_map.max()


def plant(quarter: int | None) -> Image.Image:
    """Draw gray noise with a bright disc in one quarter, 0 to 3 by rows, or in none."""
    noise = np.random.default_rng(0).normal(90, 6, (64, 64))
    image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    if quarter is not None:
        row, column = divmod(quarter, 2)
        x, y = 16 + 32 * column, 16 + 32 * row
        ImageDraw.Draw(image).ellipse((x - 8, y - 8, x + 8, y + 8), fill=250)
    return image


@with_gradcam
def test_gradcam_locates_a_planted_disc(tiny_body, backbone_name):
    """The head scores the disc, and the attribution that the disc adds lies on it.

    All four quarters are tested: a grid that is transposed, shifted by a prefix token or of the
    wrong width would put it elsewhere.
    """
    size = TINY_SIZES[backbone_name]
    # In a deep network one place of the map sees all of a small image.
    predictor = make_predictor(backbone_name, tiny_body, 192 if size == 64 else size)
    score_more(predictor, plant(None), *map(plant, range(4)))

    def map_of(quarter: int | None) -> np.ndarray:
        network = predictor.network
        found = METHODS["gradcam"](network, network.pixel_values([plant(quarter)]))
        return found.values.clamp(min=0).numpy()

    for quarter in range(4):
        added = np.clip(map_of(quarter) - map_of(None), 0, None)
        middle = len(added) // 2
        halves = (added[:middle], added[-middle:])
        shares = [part.sum() for half in halves for part in (half[:, :middle], half[:, -middle:])]
        assert np.argmax(shares) == quarter
        assert shares[quarter] > 0.4 * sum(shares)


@pytest.mark.parametrize(
    ("architecture", "side"), [("test_vit", 4), ("test_resnet", 2), ("test_byobnet", 2)]
)
def test_gradcam_works_for_any_timm_model_with_a_grid(tmp_path, architecture, side):
    settings = {"img_size": 64} if architecture == "test_vit" else None
    save_timm(architecture, settings, tmp_path)
    predictor = make_predictor("timm", tmp_path)
    attribution_map = gradcam_of(predictor)
    assert attribution_map.shape == (side, side)


def test_gradcam_works_for_the_default_model():
    predictor = Predictor.from_pretrained(DEFAULT_MODEL, device="cpu")
    attribution_map = gradcam_of(predictor)
    assert attribution_map.shape == (5, 5)


def test_steps_are_doubled_until_the_map_is_complete(tmp_path, monkeypatch):
    import captum.attr

    predictor = make_predictor("xray-cnn", save_tiny_body("xray-cnn", tmp_path))
    asked = []

    class Incomplete(captum.attr.IntegratedGradients):
        def attribute(self, inputs, n_steps, **settings):
            asked.append(n_steps)
            parts = super().attribute(inputs, n_steps=n_steps, **settings)
            return parts * (2 if n_steps < 128 else 1)

    monkeypatch.setattr(captum.attr, "IntegratedGradients", Incomplete)
    found = attribute(predictor, IMAGE, "integrated_gradients")
    assert asked == [64, 128] and found.completeness_error <= 0.05
    monkeypatch.setattr(Incomplete, "attribute", lambda self, inputs, **_: 1.7 * inputs)
    found = attribute(predictor, IMAGE, "integrated_gradients")
    assert any("after 256 steps" in text for text in found.warnings)


def test_gradcam_of_a_small_network_equals_the_result_by_hand():
    """Two channels of 2 x 2, averaged, and a linear head: the map is the head times the channels.

    With global average pooling Grad-CAM equals CAM up to a factor (Selvaraju et al. 2017, section
    3.1): the gradient of channel k is w_k / 4 at every place.
    """
    from types import SimpleNamespace

    from pneumonia_hf.inference import attribution_methods

    channels = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [0.0, 8.0]])
    weights = torch.tensor([[0.5, -1.0], [1.5, 1.0]])  # NORMAL, PNEUMONIA

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = torch.nn.Identity()
            self.config = SimpleNamespace(id2label={0: "NORMAL", 1: "PNEUMONIA"})

        def forward(self, pixel_values):
            grid = self.grid(torch.stack(channels)[None] * pixel_values.mean())
            return SimpleNamespace(logits=grid.mean(dim=(2, 3)) @ weights.T)

    network = Network(Tiny(), processor=None, name="by hand")
    with pytest.MonkeyPatch.context() as patch:
        entry = SimpleNamespace(features=lambda model: model.grid, prefix_tokens=None)
        patch.setattr(attribution_methods, "backbone_of", lambda model: entry)
        found = METHODS["gradcam"](network, torch.ones(1, 3, 2, 2, requires_grad=True))
    # Log odds: (1.5 - 0.5) and (1.0 + 1.0) a channel, over 4 places.
    expected = torch.tensor([[1.0, 2 + 2], [3.0, 4 + 16]]) / 4
    torch.testing.assert_close(found.values, expected)


def test_occlusion_equals_the_result_by_hand(tmp_path):
    """Of a network that sees the upper left cell only."""
    from types import SimpleNamespace

    class Corner(torch.nn.Module):
        config = SimpleNamespace(id2label={0: "NORMAL", 1: "PNEUMONIA"})

        def forward(self, pixel_values):
            seen = pixel_values[:, :, :2, :2].mean(dim=(1, 2, 3))
            return SimpleNamespace(logits=torch.stack([0 * seen, 10 * seen], dim=1))

    pixel_values = torch.zeros(1, 3, 14, 14)
    pixel_values[..., :2, :2] = 1  # the image's mean is 4 / 196
    found = METHODS["occlusion"](Network(Corner(), processor=None), pixel_values)
    expected = torch.zeros(7, 7)
    # One square of two cells a side covers that cell: it lowers the log odds by 10 (1 - 4 / 196).
    # Its neighbours lie under two and four squares, and take the mean over them.
    fall = 10 * (1 - 4 / 196) * torch.tensor([[1, 1 / 2], [1 / 2, 1 / 4]])
    expected[:2, :2] = fall
    torch.testing.assert_close(found.values, expected)


def test_attention_rollout_equals_the_result_by_hand(monkeypatch):
    """Of two layers of one head, a class token and four patches (Abnar and Zuidema 2020)."""
    from types import SimpleNamespace

    from pneumonia_hf.inference import attribution_methods

    first, second = torch.full((5, 5), 0.2), torch.zeros(5, 5)
    second[:, 3] = 1  # every token reads the third patch

    class Attending(torch.nn.Module):
        config = SimpleNamespace(id2label={0: "NORMAL", 1: "PNEUMONIA"}, model_type="vit")

        def set_attn_implementation(self, name):
            assert name == "eager"

        def forward(self, pixel_values, output_attentions):
            return SimpleNamespace(attentions=(first[None, None], second[None, None]))

    entry = SimpleNamespace(prefix_tokens=1)
    monkeypatch.setattr(attribution_methods, "backbone_of", lambda model: entry)
    found = METHODS["attention_rollout"](
        Network(Attending(), processor=None), torch.zeros(1, 3, 4, 4)
    )
    one = (first + torch.eye(5)) / 2
    expected = ((second + torch.eye(5)) / 2 @ one)[0, 1:].view(2, 2)
    torch.testing.assert_close(found.values, expected)
    assert expected[1, 0] > 2 * expected[0, 0]  # the third patch


@pytest.mark.parametrize("baseline", ["black", "blurred", "mean"])
def test_integrated_gradients_sum_to_the_difference_from_their_baseline(tmp_path, baseline):
    from pneumonia_hf.inference.attribution_methods import BASELINES, integrated_gradients

    predictor = make_predictor("xray-cnn", save_tiny_body("xray-cnn", tmp_path))
    score_more(predictor, Image.new("L", (64, 64), 90), IMAGE)
    network = predictor.network
    pixel_values = network.pixel_values([IMAGE])
    origin = BASELINES[baseline](network, pixel_values)
    assert origin.shape == pixel_values.shape
    with torch.no_grad():
        difference = float(network.log_odds_of(pixel_values) - network.log_odds_of(origin))
    found = integrated_gradients(network, pixel_values, baseline=baseline)
    assert found.completeness_error < 0.05
    # Smoothing mirrors the border, so that it keeps the sum nearly.
    assert float(found.values.sum()) == pytest.approx(difference, rel=0.15, abs=0.02)


def test_gradient_shap_sums_to_the_mean_difference_from_all_baselines(tmp_path):
    from pneumonia_hf.inference.attribution_methods import BASELINES

    predictor = make_predictor("xray-cnn", save_tiny_body("xray-cnn", tmp_path))
    score_more(predictor, Image.new("L", (64, 64), 90), IMAGE)
    network = predictor.network
    pixel_values = network.pixel_values([IMAGE])
    origins = torch.cat([one(network, pixel_values) for one in BASELINES.values()])
    with torch.no_grad():
        differences = network.log_odds_of(pixel_values) - network.log_odds_of(origins)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    found = METHODS["gradient_shap"](network, pixel_values).values
    assert differences.min() - 0.3 < float(found.sum()) < differences.max() + 0.3
    # The map does not depend on the caller's random numbers, which stay as they were.
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = METHODS["gradient_shap"](network, pixel_values).values
    torch.testing.assert_close(again, found)
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])


def test_layers_of_several_resolutions_are_joined_at_the_finest():
    predictor = Predictor.from_pretrained(DEFAULT_MODEL, device="cpu")
    network = predictor.network
    pixel_values = network.pixel_values([IMAGE])
    found = METHODS["multi_layer"](network, pixel_values).values
    assert found.shape == (20, 20)  # of maps of 5, 10 and 20 places a side
    # With a linear head on pooled features, each place has the same gradient.
    last = METHODS["gradcam"](network, pixel_values).values
    torch.testing.assert_close(METHODS["gradient_x_activation"](network, pixel_values).values, last)
