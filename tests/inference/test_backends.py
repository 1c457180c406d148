"""What computes scores: every backend gives the probabilities of the model itself."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from helpers import TINY_SIZES, draw_xray, save_tiny_body

from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.inference import backends
from pneumonia_hf.inference.backends import Scorer, make_scorer, measure_ranges
from pneumonia_hf.inference.frontal import KINDS, Frontal
from pneumonia_hf.inference.gate import Gate, compute_features, middle_layer
from pneumonia_hf.inference.network import Network
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.build import ModelConfig, build_model

pytestmark = pytest.mark.usefixtures("exported_once")
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


openvino = pytest.param("openvino", marks=pytest.mark.slow)


@pytest.mark.parametrize("backend", ["torch", "onnx", openvino])
def test_scores_and_gate_features_are_those_of_the_model(built, backend):
    model, processor = built
    layer = middle_layer(model)
    pixel_values = Network(model, processor).pixel_values(images_of(7))
    with torch.inference_mode():
        expected = model(pixel_values=pixel_values).logits.numpy()
        seen = compute_features(model, layer, pixel_values)
    scorer = make_scorer(model, pixel_values[:2], layer, backend)
    for rows in (slice(0, 1), slice(1, 7)):  # another batch than the one it was made with
        logits, features = scorer(pixel_values[rows])
        assert logits == pytest.approx(expected[rows], abs=1e-4)
        assert features == pytest.approx(seen[rows], rel=1e-3, abs=1e-4)
    assert make_scorer(model, pixel_values[:2], None, backend)(pixel_values)[1] is None


def test_a_predictor_gives_the_same_decision_by_every_backend(built):
    model, processor = built
    plain = Network(model, processor)
    features = plain.features(images_of(8), middle_layer(model))
    weights = np.random.default_rng(0).normal(0, 0.1, (features.shape[1], len(KINDS)))
    frontal = Frontal(weights, np.zeros(len(KINDS)))
    gate = Gate.fit(middle_layer(model), features, np.arange(8) % 2)
    gate = dataclasses.replace(gate, frontal=frontal)
    scores, verdicts, _ = Network(model, processor, gate=gate).score(images_of(9), batch_size=4)
    with torch.inference_mode():
        expected = plain.log_odds_of(plain.pixel_values(images_of(9))).numpy()
    assert scores == pytest.approx(expected, abs=1e-4)
    for backend in ("onnx", "openvino"):
        other = Network(model, processor, gate=gate, backend=backend)
        found, judged, _ = other.score(images_of(9), batch_size=4)
        assert found == pytest.approx(scores, abs=1e-4)
        assert judged == pytest.approx(verdicts, rel=1e-2, abs=1e-2)


def test_a_backend_that_scores_otherwise_is_refused(built, monkeypatch):
    model, processor = built
    pixel_values = Network(model, processor).pixel_values(images_of(2))

    def wrong(model, images, layer):
        right = backends.BACKENDS["torch"](model, images, layer)
        return Scorer(lambda values: (right(values)[0] + [0, 0.01], None))

    monkeypatch.setitem(backends.BACKENDS, "onnx", wrong)
    with pytest.raises(UserError, match=r"probabilities of the backend onnx differ .* by 0\.00"):
        make_scorer(model, pixel_values, None, "onnx")


def test_auto_takes_the_quickest_that_is_installed_and_never_int8(built, monkeypatch):
    model, processor = built
    pixel_values = Network(model, processor).pixel_values(images_of(2))
    made = {name: Scorer(lambda one: (np.zeros((len(one), 2)), None)) for name in backends.BACKENDS}
    for name in made:
        monkeypatch.setitem(backends.BACKENDS, name, lambda *_, name=name: made[name])

    def let_win(best):
        monkeypatch.setattr(backends, "_time", lambda scorer, _: float(scorer is not made[best]))
        return make_scorer(model, pixel_values, None, "auto")

    for best in ("torch", "onnx", "openvino"):
        assert let_win(best) is made[best]
    assert let_win("int8") is made["torch"]  # the first of three that are equally slow
    monkeypatch.setattr(backends, "find_spec", lambda name: name != "openvino")
    assert let_win("openvino") is made["torch"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino", "int8"])
def test_threads_that_score_alone_get_the_scores_of_their_own_images(built, backend, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    model, processor = built
    pixel_values = Network(model, processor).pixel_values(images_of(12))
    measure_ranges(model, pixel_values.split(4), None, tmp_path / "ranges.json")
    scorer = make_scorer(model, pixel_values[:2], None, backend, tmp_path / "ranges.json")
    expected = [scorer(one[None])[0] for one in pixel_values]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: scorer.alone(one[None])[0], [*pixel_values] * 5))
    assert found == [pytest.approx(one, abs=1e-5) for one in expected * 5]


@pytest.mark.slow
def test_int8_is_near_the_model_with_its_own_ranges_only(built, tmp_path):
    model, processor = built
    pixel_values = Network(model, processor).pixel_values(images_of(8))
    layer = middle_layer(model)
    path = tmp_path / "ranges.json"
    path.write_text("{}")  # of an earlier model: it is measured anew
    measure_ranges(model, pixel_values.split(4), layer, path)
    exact, int8 = (
        make_scorer(model, pixel_values[:2], layer, name, path) for name in ("torch", "int8")
    )
    for one, other in zip(exact(pixel_values), int8(pixel_values), strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9
        assert not np.allclose(one, other, atol=1e-6)  # integers of 8 bits cannot be exact
    path.write_text("{}")
    for missing in (path, tmp_path / "none.json", None):
        with pytest.raises(UserError, match=r"train_scripts/quantize\.py"):
            make_scorer(model, pixel_values[:2], layer, "int8", missing)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_files_are_decided_in_order_whatever_computes(built, backend, tmp_path):
    model, processor = built
    images = images_of(21)
    paths = [tmp_path / f"{number}.png" for number in range(21)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    paths[5].write_bytes(b"no image")
    predictor = Predictor(Network(model, processor, backend=backend))
    found = list(predictor.predict_files(paths))
    assert isinstance(found.pop(5), XrayError)
    expected = Predictor(Network(model, processor)).probabilities(images[:5] + images[6:])
    assert [one.probability for one in found] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_missing_package_is_one_sentence(built, monkeypatch):
    model, processor = built
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'fast' is unknown; choose from .'torch', 'onnx'"):
        Network(model, processor, backend="fast").log_odds(images_of(1))
    with pytest.raises(UserError, match="pip install onnx onnxscript openvino"):
        Network(model, processor, backend="openvino").log_odds(images_of(1))


def test_messages_of_others_are_logged_while_int8_is_made(tmp_path, monkeypatch, caplog):
    def quantize(model, output, *_, **__):
        facts = {"msg": "advice", "levelno": logging.WARNING, "pathname": "onnxruntime/x.py"}
        logging.root.handle(logging.makeLogRecord(facts))
        logging.getLogger("another").warning("heard")
        output.write_bytes(b"int8")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", quantize)
    monkeypatch.setattr("onnx.load_from_string", bytes)
    assert backends._quantize(b"model", tmp_path / "ranges") == b"int8"
    assert caplog.messages == ["heard"]
    assert not logging.root.filters
