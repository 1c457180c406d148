"""Maps on the model's scale: which methods a model has, references, warnings, overlays."""

import numpy as np
import pytest
import torch
from helpers import REAL_XRAYS, save_tiny_body
from PIL import Image
from tiny_predictors import IMAGE, make_predictor, save_timm, score_more

from pneumonia_hf import Predictor, read_xray
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.attribution import attribute, methods_for, overlay
from pneumonia_hf.inference.attribution_methods import METHODS, RawMap
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.models.model_folder import DEFAULT_MODEL


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


def test_feature_map_without_a_grid_is_one_sentence(tmp_path):
    save_timm("test_mambaout", None, tmp_path)  # keeps its channels last
    predictor = make_predictor("timm", tmp_path)
    with pytest.raises(UserError, match=r"test_mambaout .* use the method occlusion"):
        attribute(predictor, IMAGE, "gradcam")
    found = attribute(predictor, IMAGE, "integrated_gradients")
    assert found.values.max() == 1 and not found.on_reference
    assert "own maximum" in found.warnings[0]


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
