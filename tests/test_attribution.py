import numpy as np
import pytest
import torch
from conftest import draw_xray

from pneumonia_hf import Predictor
from pneumonia_hf.attribution import METHODS, explain, overlay
from pneumonia_hf.errors import UserError

PICTURE = draw_xray(2, ill=True, size=(150, 100))


@pytest.fixture(scope="module")
def predictor(finished_model) -> Predictor:
    return Predictor.from_pretrained(finished_model)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_heat_has_the_size_of_the_picture_and_lies_in_0_to_1(predictor, method):
    heat = explain(predictor, PICTURE, method)
    assert heat.shape == (100, 150)
    assert heat.min() >= 0 and heat.max() <= 1
    assert np.isfinite(heat).all()
    again = explain(predictor, PICTURE, method)
    assert np.allclose(heat, again, atol=1e-5)


def test_gradcam_has_one_value_a_place_of_the_feature_map(predictor):
    heat = METHODS["gradcam"](predictor, predictor.pixel_values([PICTURE]))
    side = predictor.processor.size["height"]
    assert heat.ndim == 2 and heat.shape[0] == heat.shape[1] < side


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
