"""Maps on the model's scale: which methods a model has, references, warnings, overlays."""

import numpy as np
import pytest
import torch
from helpers import save_tiny_body
from PIL import Image
from tiny_predictors import IMAGE, make_predictor, score_more

from pneumonia_hf import Predictor
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.attribution import attribute, methods_for, overlay
from pneumonia_hf.inference.attribution_methods import METHODS
from pneumonia_hf.models.backbones import head_of


@pytest.fixture
def predictor(tiny_body, backbone_name) -> Predictor:
    return make_predictor(backbone_name, tiny_body)


# A network of each kind: a transformer without a class activation map, one with it, a network of
# timm with batch norms, and our own.
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


def test_every_family_has_occlusion_and_those_that_average_have_cam(predictor, backbone_name):
    averages = backbone_name not in ("vit-base", "deit-small", "timm")  # the latter a ConvNeXt
    assert methods_for(predictor) == ["cam"] * averages + ["occlusion"]


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients", "magic"])
def test_a_method_that_is_gone_or_unknown_names_the_choices(tiny_model, method):
    with pytest.raises(UserError, match=rf"'{method}' is unknown; choose from \['cam', 'occl"):
        attribute(Predictor.from_pretrained(tiny_model), IMAGE, method)


def test_a_model_of_an_earlier_version_has_references_of_methods_that_are_gone(predictor):
    predictor.network.attribution_references = {"gradcam": 2.0, "occlusion": 1e-6}
    assert attribute(predictor, IMAGE, "occlusion").on_reference
    found = attribute(predictor, IMAGE)  # by the first method that the model supports
    assert found.on_reference == (methods_for(predictor)[0] == "occlusion")
    assert found.on_reference or "own maximum" in found.warnings[0]


def test_map_of_an_ensemble_is_the_mean_of_its_members_on_their_own_scales(tmp_path):
    one, other = (
        make_predictor(name, save_tiny_body(name, tmp_path / name))
        for name in ("vit-base", "xray-cnn")
    )
    raw = METHODS["occlusion"](one.network, one.network.pixel_values([IMAGE]))
    one.network.attribution_references = {"occlusion": 2 * float(raw.max())}
    maps = [attribute(member, IMAGE, "occlusion").values for member in (one, other)]
    assert 0.45 < maps[0].max() < 0.51 and maps[1].max() == pytest.approx(1, abs=0.05)
    together = attribute(Predictor(one.network, other.network), IMAGE, "occlusion")
    assert np.allclose(together.values, (maps[0] + maps[1]) / 2, atol=1e-6)
    assert not together.on_reference  # one of them has none
    assert methods_for(Predictor(one.network, other.network)) == ["occlusion"]  # of both


@pytest.mark.quick_families("vit-base", "xray-cnn")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_brightness_of_a_map_follows_the_score(predictor, method):
    """With a stored reference, half the change of the score gives half the brightness."""
    if method not in methods_for(predictor):
        return
    score_more(predictor, Image.new("L", (64, 64), 90), IMAGE)
    pixel_values = predictor.network.pixel_values([IMAGE])
    reference = float(METHODS[method](predictor.network, pixel_values).max())
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
    fake = {"occlusion": lambda *_: torch.full((2, 2), next(maxima))}
    monkeypatch.setattr(attribution, "METHODS", fake)
    assert attribution.measure_references(predictor, [IMAGE] * 3) == {"occlusion": 2.0}


def test_target_is_the_log_odds_behind_the_probability(predictor):

    with torch.no_grad():
        head_of(predictor.network.model).bias += torch.tensor([3.0, -1.0])
        log_odds = predictor.network.log_odds_of(predictor.network.pixel_values([IMAGE]))
    assert log_odds.item() == pytest.approx(predictor.log_odds([IMAGE])[0], abs=1e-4)
    probability = 1 / (1 + np.exp(-log_odds.item()))
    assert predictor.probabilities([IMAGE])[0] == pytest.approx(probability, abs=1e-5)


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


def test_map_depends_on_the_weights(tiny_model):
    network = Predictor.from_pretrained(tiny_model).network
    pixel_values = network.pixel_values([IMAGE])
    before = METHODS["cam"](network, pixel_values)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    after = METHODS["cam"](network, pixel_values)
    assert before.std() > 0 and not torch.allclose(before, after, atol=float(before.std()))


def test_overlay_colours_only_places_above_zero():
    attribution_map = np.zeros((100, 150), np.float32)
    attribution_map[:50] = 1
    laid = np.asarray(overlay(IMAGE, attribution_map)).astype(int)
    assert laid.shape == (100, 150, 3)
    gray = np.asarray(IMAGE.convert("RGB")).astype(int)
    assert np.array_equal(laid[50:], gray[50:])
    assert np.abs(laid[:50] - gray[:50]).mean() > 20
