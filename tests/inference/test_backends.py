"""What computes scores: every backend gives the probabilities of the model itself."""

import numpy as np
import pytest
import torch
from helpers import TINY_SIZES, draw_xray, save_tiny_body
from torch import nn

from pneumonia_hf.errors import UserError
from pneumonia_hf.inference import backends
from pneumonia_hf.inference.backends import fold_batch_norms, make_scorer
from pneumonia_hf.inference.gate import Gate, describe, middle_layer
from pneumonia_hf.inference.network import Network
from pneumonia_hf.models.build import ModelConfig, build_model

# An export takes seconds: the other families are for all tests only.
FAMILIES = (
    "xray-cnn",
    *(pytest.param(name, marks=pytest.mark.slow)
      for name in ("efficientnet-lite0", "convnextv2-tiny", "vit-base")),
)  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def built(request, tmp_path_factory):
    """A tiny model and its processor, with a head that does not score all images alike."""
    name = request.param
    body = save_tiny_body(name, tmp_path_factory.mktemp(name))
    torch.manual_seed(1)
    model, processor = build_model(ModelConfig(name, str(body), TINY_SIZES[name]))
    return model.eval(), processor


def images_of(count: int):
    return [draw_xray(seed, ill=bool(seed % 2), size=(90, 70)) for seed in range(count)]


@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino"])
def test_scores_and_gate_features_are_those_of_the_model(built, backend):
    model, processor = built
    layer = middle_layer(model)
    pixel_values = Network(model, processor).pixel_values(images_of(7))
    with torch.inference_mode(), describe(model, layer) as seen:
        expected = model(pixel_values=pixel_values).logits.numpy()
    scorer = make_scorer(model, pixel_values[:2], layer, backend)
    for rows in (slice(0, 1), slice(1, 7)):  # another batch than the one it was made with
        logits, features = scorer(pixel_values[rows])
        assert logits == pytest.approx(expected[rows], abs=1e-4)
        assert features == pytest.approx(seen[0][rows], rel=1e-3, abs=1e-4)
    assert make_scorer(model, pixel_values[:2], None, backend)(pixel_values)[1] is None


def test_a_predictor_gives_the_same_decision_by_every_backend(built):
    model, processor = built
    plain = Network(model, processor)
    features = plain.features(images_of(8), middle_layer(model))
    gate = Gate.fit(middle_layer(model), features, np.arange(8) % 2, features)
    scores, distances = Network(model, processor, gate=gate).score(images_of(9), batch_size=4)
    with torch.inference_mode():
        expected = plain.log_odds_of(plain.pixel_values(images_of(9))).numpy()
    assert scores == pytest.approx(expected, abs=1e-4)
    for backend in ("onnx", "openvino"):
        other = Network(model, processor, gate=gate, backend=backend)
        found, far = other.score(images_of(9), batch_size=4)
        assert found == pytest.approx(scores, abs=1e-4)
        assert far == pytest.approx(distances, rel=1e-2, abs=1e-2)


def test_batch_norms_are_folded_into_a_copy(built):
    model, processor = built
    pixel_values = Network(model, processor).pixel_values(images_of(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = sum(isinstance(one, nn.BatchNorm2d) for one in model.modules())
    folded = fold_batch_norms(model, pixel_values)
    assert (folded is model) == (count == 0)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in folded.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.inference_mode():
        expected, found = (one(pixel_values=pixel_values).logits for one in (model, folded))
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_convolution_that_something_else_reads_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 3)
            self.norm = nn.BatchNorm2d(2)
            self.norm.running_mean.fill_(3.0)
            self.device = torch.device("cpu")

        def forward(self, pixel_values):
            values = self.convolution(pixel_values)
            both = values + self.norm(values)
            return type("Output", (), {"logits": both.mean(dim=(2, 3))})

    model = Shared().eval()
    assert fold_batch_norms(model, torch.randn(2, 3, 8, 8)) is model


def test_a_backend_that_scores_otherwise_is_refused(built, monkeypatch):
    model, processor = built
    pixel_values = Network(model, processor).pixel_values(images_of(2))

    def wrong(model, images, layer):
        right = backends.BACKENDS["torch"](model, images, layer)
        return lambda values: (right(values)[0] + [0, 0.01], None)

    monkeypatch.setitem(backends.BACKENDS, "onnx", wrong)
    with pytest.raises(UserError, match=r"differs by .* in its probabilities"):
        make_scorer(model, pixel_values, None, "onnx")


def test_auto_takes_the_quickest_that_is_installed(built, monkeypatch):
    model, processor = built
    pixel_values = Network(model, processor).pixel_values(images_of(2))
    made = {name: lambda values: (values.numpy()[:, :2, 0, 0], None) for name in backends.BACKENDS}
    for name in made:
        made[name] = (lambda name: lambda values: (np.zeros((len(values), 2)), None))(name)
        monkeypatch.setitem(backends.BACKENDS, name, lambda *_, name=name: made[name])
    for quickest in ("torch", "openvino"):
        monkeypatch.setattr(
            backends, "_time", lambda scorer, _, best=quickest: float(scorer is not made[best])
        )
        assert make_scorer(model, pixel_values, None, "auto") is made[quickest]
    monkeypatch.setattr(backends, "find_spec", lambda name: name != "openvino")
    monkeypatch.setattr(backends, "_time", lambda scorer, _: float(scorer is made["torch"]))
    assert make_scorer(model, pixel_values, None, "auto") is made["onnx"]


def test_a_missing_package_is_one_sentence(built, monkeypatch):
    model, processor = built
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'fast' is unknown; choose from .'torch', 'onnx'"):
        Network(model, processor, backend="fast").log_odds(images_of(1))
    with pytest.raises(UserError, match="pip install onnx onnxscript openvino"):
        Network(model, processor, backend="openvino").log_odds(images_of(1))
