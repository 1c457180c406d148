import numpy as np
import pytest
import torch
from conftest import TINY_SIZES, draw_xray, save_tiny_body
from PIL import Image, ImageDraw
from transformers import AutoModelForImageClassification, TimmWrapperConfig

from pneumonia_hf import Predictor
from pneumonia_hf.attribution import METHODS, explain, overlay
from pneumonia_hf.backbones import BACKBONES, ModelConfig, build_model, head_of
from pneumonia_hf.errors import UserError
from pneumonia_hf.predictor import DEFAULT_MODEL

PICTURE = draw_xray(2, ill=True, size=(150, 100))


def make_predictor(name: str, body: object, size: int | None = None) -> Predictor:
    torch.manual_seed(0)
    return Predictor(*build_model(ModelConfig(name, str(body), size or TINY_SIZES[name])))


@pytest.fixture
def predictor(tiny_body, backbone_name) -> Predictor:
    return make_predictor(backbone_name, tiny_body)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_heat_has_the_size_of_the_picture_and_lies_in_0_to_1(predictor, method):
    heat = explain(predictor, PICTURE, method)
    assert heat.shape == (100, 150)
    assert heat.min() >= 0 and heat.max() <= 1
    assert np.isfinite(heat).all()
    again = explain(predictor, PICTURE, method)
    assert np.allclose(heat, again, atol=1e-5)


# Pixels a side of the picture that one place of the last feature map stands for.
STRIDES = dict.fromkeys(BACKBONES, 32) | {
    "vit-base": 8,  # the tiny ones' patches
    "deit-small": 8,
    "dinov2-small": 7,
    "swin-tiny": 16,
    "xray-cnn": 4,
}


def test_gradcam_has_one_value_a_place_of_the_feature_map(predictor, backbone_name):
    heat = METHODS["gradcam"](predictor, predictor.pixel_values([PICTURE]))
    side = TINY_SIZES[backbone_name] // STRIDES[backbone_name]
    assert heat.shape == (side, side)
    score_more(predictor, Image.new("L", (64, 64), 90), PICTURE)
    heat = METHODS["gradcam"](predictor, predictor.pixel_values([PICTURE]))
    assert heat.max() > 0
    assert heat.std() > 0.01 * heat.max()


def plant(quarter: int | None) -> Image.Image:
    """Draw grey noise with a bright disc in a quarter: 0 to 3, line by line; None: in none."""
    noise = np.random.default_rng(0).normal(90, 6, (64, 64))
    image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    if quarter is not None:
        row, column = divmod(quarter, 2)
        x, y = 16 + 32 * column, 16 + 32 * row
        ImageDraw.Draw(image).ellipse((x - 8, y - 8, x + 8, y + 8), fill=250)
    return image


def score_more(predictor: Predictor, plain: Image.Image, *shown: Image.Image) -> None:
    """Turn the head so that the logit of PNEUMONIA is 0 for `plain` and grows towards `shown`."""
    head = head_of(predictor.model)
    seen = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        predictor.model(pixel_values=predictor.pixel_values([plain, *shown]))
        hook.remove()
        (features,) = seen
        origin, way = features[0], features[1:].mean(dim=0) - features[0]
        way -= (way @ origin) / (origin @ origin) * origin
        head.bias.zero_()
        head.weight.zero_()
        head.weight[predictor.class_index] = way / way.norm()


def test_gradcam_finds_what_was_planted(tiny_body, backbone_name):
    """The head is turned towards the disc, and the heat that the disc adds lies where it is.

    All four places are tried: a grid that is transposed, shifted by a prefix token or of the
    wrong width would put it elsewhere.
    """
    size = TINY_SIZES[backbone_name]
    # Of the deep networks, one place sees the whole of a small picture.
    predictor = make_predictor(backbone_name, tiny_body, 192 if size == 64 else size)
    score_more(predictor, plant(None), *map(plant, range(4)))

    def heat_of(quarter: int | None) -> np.ndarray:
        return METHODS["gradcam"](predictor, predictor.pixel_values([plant(quarter)])).numpy()

    for quarter in range(4):
        added = np.clip(heat_of(quarter) - heat_of(None), 0, None)
        middle = len(added) // 2
        halves = (added[:middle], added[-middle:])
        shares = [part.sum() for half in halves for part in (half[:, :middle], half[:, -middle:])]
        assert np.argmax(shares) == quarter
        assert shares[quarter] > 0.4 * sum(shares)


@pytest.mark.parametrize(
    ("architecture", "side"), [("test_vit", 4), ("test_resnet", 2), ("test_byobnet", 2)]
)
def test_any_model_of_timm_is_explained(tmp_path, architecture, side):
    settings = {"img_size": 64} if architecture == "test_vit" else None
    save_timm(architecture, settings, tmp_path)
    predictor = make_predictor("timm", tmp_path)
    heat = METHODS["gradcam"](predictor, predictor.pixel_values([PICTURE]))
    assert heat.shape == (side, side)


def test_map_that_is_no_grid_is_told_in_one_sentence(tmp_path):
    save_timm("test_mambaout", None, tmp_path)  # keeps its channels last
    predictor = make_predictor("timm", tmp_path)
    with pytest.raises(UserError, match=r"test_mambaout .* use the method integrated_gradients"):
        explain(predictor, PICTURE)
    assert explain(predictor, PICTURE, "integrated_gradients").max() == 1


def save_timm(architecture: str, settings: dict | None, folder: object) -> None:
    config = TimmWrapperConfig(architecture=architecture, model_args=settings, num_labels=2)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)


def test_model_of_an_earlier_release_is_explained():
    predictor = Predictor.from_pretrained(DEFAULT_MODEL, device="cpu")
    heat = METHODS["gradcam"](predictor, predictor.pixel_values([PICTURE]))
    assert heat.shape == (7, 7)


def test_heat_of_an_ensemble_is_the_mean_of_its_members(tmp_path, monkeypatch):
    one, other = (
        make_predictor(name, save_tiny_body(name, tmp_path / name))
        for name in ("vit-base", "xray-cnn")
    )
    heats = [explain(member, PICTURE, "integrated_gradients") for member in (one, other)]
    monkeypatch.setattr(Predictor, "members", (one, other))
    together = explain(Predictor(one.model, one.processor), PICTURE, "integrated_gradients")
    mean = sum(heats) / sum(heats).max()
    assert np.allclose(together, mean, atol=1e-6)
    assert np.abs(together - heats[0]).max() > 0.01


def test_explaining_leaves_the_model_as_it_was(predictor):
    before = predictor.probabilities([PICTURE])
    state = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    for method in METHODS:
        explain(predictor, PICTURE, method)
    assert np.array_equal(predictor.probabilities([PICTURE]), before)
    assert all(torch.equal(state[n], v) for n, v in predictor.model.state_dict().items())
    assert not any(module._forward_hooks for module in predictor.model.modules())
    assert all(parameter.grad is None for parameter in predictor.model.parameters())


def test_gradcam_matches_its_definition(predictor):
    """Channel weights are the mean gradients, the map their weighted sum, cut at zero."""
    from pneumonia_hf.attribution import _feature_grid

    pixel_values = predictor.pixel_values([PICTURE])
    kept = {}
    with _feature_grid(predictor.model, pixel_values) as layer:

        def keep(_module, _inputs, output):
            output.retain_grad()
            kept["features"] = output

        hook = layer.register_forward_hook(keep)
        logit = predictor.model(pixel_values=pixel_values).logits[0, predictor.class_index]
        hook.remove()
    logit.backward()
    features = kept["features"]
    weights = features.grad.mean(dim=(2, 3), keepdim=True)
    expected = (weights * features).sum(dim=1)[0].clamp(min=0).detach()
    predictor.model.zero_grad(set_to_none=True)
    assert features.grad.abs().sum() > 0
    assert torch.allclose(METHODS["gradcam"](predictor, pixel_values), expected, atol=1e-5)


def test_heat_notices_other_weights(tiny_model):
    predictor = Predictor.from_pretrained(tiny_model)
    before = explain(predictor, PICTURE, "integrated_gradients")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in predictor.model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    after = explain(predictor, PICTURE, "integrated_gradients")
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] < 0.9


def test_unknown_method_names_the_choices(tiny_model):
    with pytest.raises(UserError, match="gradcam"):
        explain(Predictor.from_pretrained(tiny_model), PICTURE, "magic")


def test_overlay_colours_only_where_there_is_heat():
    heat = np.zeros((100, 150), np.float32)
    heat[:50] = 1
    laid = np.asarray(overlay(PICTURE, heat)).astype(int)
    assert laid.shape == (100, 150, 3)
    grey = np.asarray(PICTURE.convert("RGB")).astype(int)
    assert np.array_equal(laid[50:], grey[50:])
    assert np.abs(laid[:50] - grey[:50]).mean() > 20
