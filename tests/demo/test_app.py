"""The endpoint of the app, called by the real client."""

import json
import os
import re
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers import ROOT, draw_xray
from PIL import Image

from pneumonia_hf import Predictor, read_xray
from pneumonia_hf.inference.attribution_methods import METHODS


@pytest.fixture(scope="module")
def client(app_url, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("client"))
        client = Client(app_url, verbose=False, download_files=tmp_path_factory.mktemp("files"))
        yield client
        client.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "xray.png"
    draw_xray(4, ill=True, size=(300, 240)).save(path)
    return path


def test_endpoint_returns_the_prediction_of_the_predictor(client, image, tiny_model):
    result, overlay = client.predict(image=handle_file(image), api_name="/predict")
    expected = Predictor.from_pretrained(tiny_model).predict(read_xray(image))
    assert result["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert result["threshold"] == expected.threshold
    assert (result["label"], result["decision"]) == (expected.label, expected.decision)
    assert result["warnings"] == list(expected.warnings)
    with Image.open(overlay) as drawn:
        assert drawn.size == (300, 240)
        gray = np.asarray(drawn.convert("RGB"), int)
    assert np.ptp(gray, axis=2).max() > 20  # the map is coloured


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"attention_rollout"}))  # no ViT
def test_endpoint_accepts_every_method(client, image, method):
    result, overlay = client.predict(handle_file(image), method, api_name="/predict")
    assert result["decision"] and os.path.getsize(overlay) > 1000


def test_16_bit_image_is_not_clipped_to_white(client, tmp_path, tiny_model):
    values = np.asarray(draw_xray(4, ill=True, size=(300, 240))).astype(np.uint16) * 12 + 200
    path = tmp_path / "deep.png"
    Image.fromarray(values).save(path)
    result, _ = client.predict(handle_file(path), api_name="/predict")
    expected = Predictor.from_pretrained(tiny_model).predict(read_xray(path))
    assert result["probability"] == pytest.approx(expected.probability, abs=1e-5)


def test_endpoint_reports_bad_input_in_the_usual_sentence(client, image, tmp_path):
    text = tmp_path / "scan.jpeg"
    text.write_text("no image")
    with pytest.raises(AppError, match=r"scan.jpeg is not an image that can be read"):
        client.predict(handle_file(text), api_name="/predict")
    with pytest.raises(AppError, match="Upload a chest X-ray first"):
        client.predict(None, api_name="/predict")
    result, _ = client.predict(handle_file(image), api_name="/predict")
    assert result["decision"]  # the app still works


def test_only_the_documented_endpoint_is_public(client):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/predict"]


def test_page_states_its_limits_and_loads_nothing_from_other_servers(app_url):
    with urllib.request.urlopen(app_url, timeout=10) as answer:
        page = answer.read().decode()
    assert "not a medical device" in page
    assert not re.findall(r'(?:src|href)="https?://(?!127\.0\.0\.1)[^"]*\.(?:js|css|woff2?)', page)


@pytest.mark.slow
def test_unknown_model_ends_the_app_with_one_sentence():
    environment = os.environ | {"MODEL_ID": "./nothing"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: The model folder ./nothing")
    assert "Traceback" not in done.stderr


def test_the_default_method_is_the_best_of_those_that_passed_their_tests(tiny_model, tmp_path):
    import shutil

    from pneumonia_hf.demo.app import _choose_methods

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    predictor = Predictor.from_pretrained(model)
    choices, default = _choose_methods(predictor)
    assert default == "gradcam" and ("integrated gradients", "integrated_gradients") in choices

    def test_of(best, **verdicts):
        results = [{"method": name, "verdict": one} for name, one in verdicts.items()]
        return {"data": "x", "faithfulness": {"best": best, "results": results}}

    first = test_of("occlusion", gradcam="fail", occlusion="pass", multi_layer="pass")
    second = test_of(None, gradcam="pass", multi_layer="fail")
    (model / "reports.json").write_text(json.dumps([{"data": "old"}, first, second]))
    choices, default = _choose_methods(predictor)
    titles = {name: title for title, name in choices}
    assert default == "occlusion"
    assert titles["gradcam"] == "gradcam (failed a test)"
    assert titles["occlusion"] == "occlusion (passed its tests)"
    assert titles["multi_layer"] == "multi layer (failed a test)"
    (model / "reports.json").write_text(json.dumps([test_of(None, gradcam="fail")]))
    assert _choose_methods(predictor)[1] == "gradient_x_activation"
