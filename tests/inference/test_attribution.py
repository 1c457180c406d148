import numpy as np
import pytest
import torch
from helpers import REAL_XRAYS, TINY_SIZES, draw_xray, save_tiny_body
from PIL import Image, ImageDraw
from transformers import AutoModelForImageClassification, TimmWrapperConfig

from pneumonia_hf import Predictor, read_xray
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.attribution import attribute, methods_for, overlay
from pneumonia_hf.inference.attribution_methods import METHODS, RawMap
from pneumonia_hf.inference.network import Network
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.backbones import BACKBONES, head_of
from pneumonia_hf.models.build import ModelConfig, build_model
from pneumonia_hf.models.model_folder import DEFAULT_MODEL

IMAGE = draw_xray(2, ill=True, size=(150, 100))


def make_predictor(name: str, body: object, size: int | None = None) -> Predictor:
    torch.manual_seed(0)
    return Predictor(Network(*build_model(ModelConfig(name, str(body), size or TINY_SIZES[name]))))


def gradcam_of(predictor: Predictor) -> torch.Tensor:
    network = predictor.network
    return METHODS["gradcam"](network, network.pixel_values([IMAGE])).values


@pytest.fixture
def predictor(tiny_body, backbone_name) -> Predictor:
    return make_predictor(backbone_name, tiny_body)


# A network for each method: two transformers, of which one has no Grad-CAM, one of timm with batch
# norms, and our own. What a method finds in each family has tests of its own.
each_kind = pytest.mark.quick_families("vit-base", "dinov2-small", "efficientnet-b0", "xray-cnn")


@each_kind
@pytest.mark.parametrize("method", sorted(METHODS))
def test_map_has_the_size_of_the_image_and_lies_in_0_to_1(predictor, method):
    if method not in methods_for(predictor):
        with pytest.raises(UserError, match=f"{method}' does not work for this model; choose from"):
            attribute(predictor, IMAGE, method)
        return
    values = attribute(predictor, IMAGE, method).values
    assert values.shape == (100, 150)
    assert values.min() >= 0 and values.max() <= 1
    assert np.isfinite(values).all()
    again = attribute(predictor, IMAGE, method).values
    assert np.allclose(values, again, atol=1e-5)


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


def test_gradcam_is_offered_for_every_family_but_dinov2(predictor, backbone_name):
    """Grad-CAM of DINOv2 does not agree with occlusion in any layer."""
    expected = set(METHODS)
    if backbone_name == "dinov2-small":
        expected -= {"gradcam", "gradient_x_activation"}
    if backbone_name in ("dinov2-small", "vit-base", "deit-small", "swin-tiny"):
        expected -= {"multi_layer"}  # their layers share one resolution, or are no grids
    if backbone_name not in ("dinov2-small", "vit-base", "deit-small"):
        expected -= {"attention_rollout"}
    assert set(methods_for(predictor)) == expected


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


def score_more(predictor: Predictor, plain: Image.Image, *shown: Image.Image) -> None:
    """Set the head so that the logit of PNEUMONIA is 0 for `plain` and grows towards `shown`."""
    head = head_of(predictor.network.model)
    seen = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        predictor.network.model(pixel_values=predictor.network.pixel_values([plain, *shown]))
        hook.remove()
        (features,) = seen
        origin, direction = features[0], features[1:].mean(dim=0) - features[0]
        direction -= (direction @ origin) / (origin @ origin) * origin
        head.bias.zero_()
        head.weight.zero_()
        head.weight[predictor.network.class_index] = direction / direction.norm()


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


def test_feature_map_without_a_grid_is_one_sentence(tmp_path):
    save_timm("test_mambaout", None, tmp_path)  # keeps its channels last
    predictor = make_predictor("timm", tmp_path)
    with pytest.raises(UserError, match=r"test_mambaout .* use the method occlusion"):
        attribute(predictor, IMAGE, "gradcam")
    found = attribute(predictor, IMAGE, "integrated_gradients")
    assert found.values.max() == 1 and not found.on_reference
    assert "own maximum" in found.warnings[0]


def save_timm(architecture: str, settings: dict | None, folder: object) -> None:
    config = TimmWrapperConfig(architecture=architecture, model_args=settings, num_labels=2)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)


def test_gradcam_works_for_the_default_model():
    predictor = Predictor.from_pretrained(DEFAULT_MODEL, device="cpu")
    attribution_map = gradcam_of(predictor)
    assert attribution_map.shape == (5, 5)


def test_map_of_an_ensemble_is_the_mean_of_its_members_on_their_own_scales(tmp_path):
    one, other = (
        make_predictor(name, save_tiny_body(name, tmp_path / name))
        for name in ("vit-base", "xray-cnn")
    )
    raw = METHODS["integrated_gradients"](one.network, one.network.pixel_values([IMAGE])).values
    one.network.attribution_references = {"integrated_gradients": 2 * float(raw.max())}
    maps = [attribute(member, IMAGE, "integrated_gradients").values for member in (one, other)]
    assert 0.45 < maps[0].max() < 0.51 and maps[1].max() == 1
    together = attribute(Predictor(one.network, other.network), IMAGE, "integrated_gradients")
    assert np.allclose(together.values, (maps[0] + maps[1]) / 2, atol=1e-6)
    assert not together.on_reference  # one of them has none
    assert together.completeness_error is not None


@pytest.mark.quick_families("vit-base", "xray-cnn")
@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_brightness_of_a_map_follows_the_score(predictor, method):
    """With a stored reference, half the change of the score gives half the brightness."""
    if method not in methods_for(predictor):
        return
    score_more(predictor, Image.new("L", (64, 64), 90), IMAGE)
    pixel_values = predictor.network.pixel_values([IMAGE])
    reference = float(METHODS[method](predictor.network, pixel_values).values.max())
    predictor.network.attribution_references = {method: reference}
    full = attribute(predictor, IMAGE, method)
    assert full.on_reference and full.warnings == ()
    with torch.no_grad():
        head_of(predictor.network.model).weight /= 2
    half = attribute(predictor, IMAGE, method)
    assert np.allclose(half.values, full.values / 2, atol=1e-4)
    assert half.values.max() < 0.51


def test_references_are_the_median_of_the_maxima(predictor, monkeypatch):
    from pneumonia_hf.inference import attribution

    monkeypatch.setattr(attribution, "methods_for", lambda _: ["occlusion"])

    maxima = iter([1.0, 5.0, 2.0])
    fake = {"occlusion": lambda *_, **__: RawMap(torch.full((2, 2), next(maxima)))}
    monkeypatch.setattr(attribution, "METHODS", fake)
    assert attribution.measure_references(predictor, [IMAGE] * 3) == {"occlusion": 2.0}


def test_target_is_the_log_odds_behind_the_probability(predictor):

    with torch.no_grad():
        head_of(predictor.network.model).bias += torch.tensor([3.0, -1.0])
        log_odds = predictor.network.log_odds_of(predictor.network.pixel_values([IMAGE]))
    assert log_odds.item() == pytest.approx(predictor.log_odds([IMAGE])[0], abs=1e-4)
    probability = 1 / (1 + np.exp(-log_odds.item()))
    assert predictor.probabilities([IMAGE])[0] == pytest.approx(probability, abs=1e-5)


def test_integrated_gradients_sum_to_the_difference_or_warn(predictor):
    """Completeness (Sundararajan et al. 2017, proposition 1), or a warning."""
    from pneumonia_hf.inference.attribution_methods import COMPLETE

    found = attribute(predictor, IMAGE, "integrated_gradients")
    assert found.completeness_error is not None
    warned = any("not complete" in text for text in found.warnings)
    assert warned == (found.completeness_error > COMPLETE)


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


@each_kind
def test_attribution_leaves_the_model_unchanged(predictor):
    before = predictor.probabilities([IMAGE])
    state = {name: value.clone() for name, value in predictor.network.model.state_dict().items()}
    for method in methods_for(predictor):
        attribute(predictor, IMAGE, method)
    assert np.array_equal(predictor.probabilities([IMAGE]), before)
    assert all(torch.equal(state[n], v) for n, v in predictor.network.model.state_dict().items())
    assert not any(module._forward_hooks for module in predictor.network.model.modules())
    assert all(parameter.grad is None for parameter in predictor.network.model.parameters())


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


def test_map_depends_on_the_weights(tiny_model):
    predictor = Predictor.from_pretrained(tiny_model)
    before = attribute(predictor, IMAGE, "integrated_gradients").values
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in predictor.network.model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    after = attribute(predictor, IMAGE, "integrated_gradients").values
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] < 0.9


def test_unknown_method_names_the_choices(tiny_model):
    with pytest.raises(UserError, match="gradcam"):
        attribute(Predictor.from_pretrained(tiny_model), IMAGE, "magic")


def test_overlay_colours_only_places_above_zero():
    attribution_map = np.zeros((100, 150), np.float32)
    attribution_map[:50] = 1
    laid = np.asarray(overlay(IMAGE, attribution_map)).astype(int)
    assert laid.shape == (100, 150, 3)
    gray = np.asarray(IMAGE.convert("RGB")).astype(int)
    assert np.array_equal(laid[50:], gray[50:])
    assert np.abs(laid[:50] - gray[:50]).mean() > 20


@pytest.mark.slow
@pytest.mark.skipif(not REAL_XRAYS.exists(), reason="needs the real X-rays")
def test_gradcam_of_the_default_model_agrees_with_occlusion():
    """On real X-rays; benchmarks/attribution.py measures it on twenty for each model."""
    from pneumonia_hf.evaluation.faithfulness import measure_agreement

    files = [f for name in LABELS for f in sorted((REAL_XRAYS / "train" / name).iterdir())[:4]]
    predictor = Predictor.from_pretrained(DEFAULT_MODEL, device="cpu")
    images = [read_xray(file) for file in files]
    found = measure_agreement(predictor, images, ["gradcam"])["gradcam"]
    assert np.mean(found) > 0.3


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


def test_agreement_of_occlusion_with_itself_is_full(tmp_path, monkeypatch):
    from pneumonia_hf.evaluation import faithfulness
    from pneumonia_hf.inference import attribution_methods as attribution

    predictor = make_predictor("xray-cnn", save_tiny_body("xray-cnn", tmp_path))
    monkeypatch.setitem(METHODS, "same", attribution.occlusion)
    monkeypatch.setitem(METHODS, "flat", lambda p, x: attribution.RawMap(torch.ones(7, 7)))
    monkeypatch.setitem(
        METHODS, "opposite", lambda p, x: attribution.RawMap(-attribution.occlusion(p, x).values)
    )
    found = faithfulness.measure_agreement(predictor, [IMAGE], ["same", "flat", "opposite"])
    assert found["same"][0] > 0.9 and found["opposite"][0] < -0.9 and found["flat"] == [0.0]


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
