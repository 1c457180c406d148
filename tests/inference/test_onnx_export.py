import copy
import json

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import TINY_SIZES, assert_one_sentence, call_script, draw_xray, save_tiny_body

from pneumonia_hf import Predictor
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference import onnx_export as export
from pneumonia_hf.inference.network import CONFIG_KEY, Network
from pneumonia_hf.inference.onnx_export import export_onnx
from pneumonia_hf.models.build import ModelConfig, build_model

IMAGES = [draw_xray(seed, ill=bool(seed % 2)) for seed in range(3)]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Predictor:
    """The quickest family to export, with its own threshold."""
    torch.manual_seed(0)
    body = save_tiny_body("xray-cnn", tmp_path_factory.mktemp("body"))
    model, processor = build_model(ModelConfig("xray-cnn", str(body), 64))
    settings = {"threshold": 0.6, "refer_low": 0.4, "refer_high": 0.7}
    setattr(model.config, CONFIG_KEY, settings)
    return Predictor(Network(model, processor, name="small"))


# The quickest family is enough for a newcomer: exporting takes 8 to 60 s for each of the others.
# The tiny networks of the three EfficientNets are one and the same.
@pytest.mark.families(*(set(TINY_SIZES) - {"efficientnet-b3", "efficientnet-lite0"}))
@pytest.mark.quick_families("xray-cnn")
def test_exported_network_gives_the_logits_of_the_model(tiny_body, backbone_name, tmp_path):
    torch.manual_seed(0)
    model, processor = build_model(
        ModelConfig(backbone_name, str(tiny_body), TINY_SIZES[backbone_name])
    )
    predictor = Predictor(Network(model, processor))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    session = onnxruntime.InferenceSession(export_onnx(predictor, tmp_path / "model.onnx"))
    for count in (1, 3):
        pixel_values = predictor.network.pixel_values(IMAGES[:count])
        inputs = {"pixel_values": pixel_values.numpy()}
        logits, probability = session.run(["logits", "probability"], inputs)
        with torch.inference_mode():
            expected = model(pixel_values=pixel_values).logits.numpy()
        assert logits.shape == (count, 2) and probability.shape == (count,)
        assert np.abs(logits - expected).max() < 1e-4
        assert np.allclose(probability, predictor.probabilities(IMAGES[:count]), atol=1e-5)
    assert len(set(map(float, probability))) == 3  # else a constant would pass
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # weights inside


@pytest.mark.slow
def test_metadata_are_enough_for_another_program(small, tmp_path):
    session = onnxruntime.InferenceSession(export_onnx(small, tmp_path / "model.onnx"))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == ["NORMAL", "PNEUMONIA"]
    assert (float(metadata["threshold"]), float(metadata["refer_low"])) == (0.6, 0.4)
    # With the file and Pillow alone the result is the same, except for the resizing.
    size = int(metadata["image_size"])
    mean, std = (
        np.array(json.loads(metadata[f"image_{name}"]), np.float32)[:, None, None]
        for name in ("mean", "std")
    )
    small_images = [np.asarray(image.resize((size, size), 3)) for image in IMAGES]
    pixels = [(image.astype(np.float32)[None] / 255 - mean) / std for image in small_images]
    (found,) = session.run(["probability"], {"pixel_values": np.stack(pixels)})
    assert np.allclose(found, small.probabilities(IMAGES), atol=0.01)


@pytest.mark.slow
def test_metadata_hold_no_threshold_if_none_was_chosen(small, tmp_path):
    plain = Predictor(Network(small.network.model, small.network.processor))
    plain.has_threshold = False
    session = onnxruntime.InferenceSession(export_onnx(plain, tmp_path / "model.onnx"))
    assert "threshold" not in session.get_modelmeta().custom_metadata_map


@pytest.mark.slow
def test_network_that_differs_is_not_written(small, tmp_path, monkeypatch):
    honest = export.export_network

    def export_other_weights(model, *others, **more):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.classifier.bias += 0.001
        return honest(other, *others, **more)

    monkeypatch.setattr(export, "export_network", export_other_weights)
    with pytest.raises(UserError, match=r"model's by 0\.001, .* nothing was written"):
        export_onnx(small, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_older_file_is_kept_without_overwrite(small, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match="--overwrite"):
        export_onnx(small, path)
    assert path.read_bytes() == b"old"
    export_onnx(small, path, overwrite=True)
    assert onnxruntime.InferenceSession(path).get_inputs()[0].shape[1:] == [3, 64, 64]


def test_each_mistake_is_one_sentence(small, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"folder .*nowhere does not exist"):
        export_onnx(small, tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(UserError, match="is a folder"):
        export_onnx(small, tmp_path)
    monkeypatch.setattr(small, "is_ensemble", True)
    with pytest.raises(UserError, match="small is an ensemble; give one of its members"):
        export_onnx(small, tmp_path / "model.onnx")
    monkeypatch.setattr(export, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"pip install no_such_package\.$"):
        export_onnx(small, tmp_path / "model.onnx")


def test_script_exports_a_saved_model(small, tmp_path):
    small.network.model.save_pretrained(tmp_path / "small")
    small.network.processor.save_pretrained(tmp_path / "small")
    flags = ["--model", tmp_path / "small", "--output", tmp_path / "model.onnx"]
    done = call_script("export_onnx.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "MB); its logits match those of the model" in done.stdout
    assert_one_sentence(call_script("export_onnx.py", *flags), "--overwrite")


def test_file_with_preprocessing_takes_gray_images_of_any_size(small, tmp_path):
    before = small.probabilities(IMAGES)
    path = export_onnx(small, tmp_path / "whole.onnx", with_preprocessing=True)
    assert b"site-packages" not in path.read_bytes() and b"/tests/" not in path.read_bytes()
    session = onnxruntime.InferenceSession(path)
    assert [one.name for one in session.get_outputs()] == ["probability"]
    for size in ((200, 120), (50, 90)):
        images = [draw_xray(seed, ill=bool(seed % 2), size=size) for seed in range(3)]
        (found,) = session.run(None, {"image": np.stack([np.asarray(one) for one in images])})
        # The processor rounds gray levels after each axis, the program once.
        assert found == pytest.approx(small.probabilities(images), abs=0.002)
        assert len(set(map(float, found))) == 3
    assert "threshold" in session.get_modelmeta().custom_metadata_map
    # Nothing of the export stays in the processor, which other images go through.
    again = Predictor(Network(small.network.model, small.network.processor))
    assert again.probabilities(IMAGES) == pytest.approx(before)


@pytest.mark.slow
def test_file_whose_preprocessing_differs_is_not_written(small, tmp_path, monkeypatch):
    honest = export._export_whole

    def export_other_weights(model, *others):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.classifier.bias += torch.tensor([0.0, 1.0])
        return honest(other, *others)

    monkeypatch.setattr(export, "_export_whole", export_other_weights)
    with pytest.raises(UserError, match="The probabilities of the exported network differ"):
        export_onnx(small, tmp_path / "whole.onnx", with_preprocessing=True)
    assert list(tmp_path.iterdir()) == []
