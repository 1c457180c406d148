"""quantize.py measures the ranges that int8 needs, and refuses a model that it would harm."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import assert_one_sentence, call_script, rename_classes

from pneumonia_hf import Predictor
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation import quantize
from pneumonia_hf.evaluation.recalibrate import find_own_splits, recalibrate
from pneumonia_hf.models.model_folder import DEFAULT_MODEL, QUANTIZATION_FILE

pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(
        tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )


@pytest.mark.slow
def test_the_script_says_what_int8_costs(model, xray_folder, tmp_path):
    # As a model of another project may name its classes.
    named = ["--positive_label", "opacity"]
    rename_classes(model, "none", "Opacity")
    done = call_script("quantize.py", "--model", model, "--data_dir", xray_folder, *named)
    assert done.returncode == 0, done.stderr
    _, validation = find_own_splits(model, [str(xray_folder)])
    said = re.search(r"On (\d+) validation .* change by (\S+) on average and (\S+) at", done.stdout)
    assert int(said[1]) == len(validation)
    files = [xray_folder / one for one in validation["file"][:]]
    exact, int8 = (
        np.array([found.probability for found in Predictor.from_pretrained(
            model, positive_label="opacity", backend=one).predict_files(files, refuse=False)])
        for one in ("torch", "int8")
    )  # fmt: skip
    changes = np.abs(exact - int8)
    assert float(said[2]) == pytest.approx(changes.mean(), abs=1e-4) and changes.any()
    assert float(said[3]) == pytest.approx(changes.max(), abs=1e-3)
    table = tmp_path / "scores.csv"
    done = call_script(
        "predict.py", "--model", model, "--input", xray_folder, "--output", table,
        "--backend", "int8", *named,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(model.glob(".*"))
    # Another head has other logits: the ranges go with the weights that they were measured on.
    recalibrate(model, *find_own_splits(model, [str(xray_folder)]), "opacity")
    assert not (model / QUANTIZATION_FILE).exists()
    done = call_script(
        "predict.py", "--model", model, "--input", xray_folder, "--output", table,
        "--backend", "int8", "--overwrite", *named,
    )  # fmt: skip
    assert_one_sentence(done, "needs the ranges", "quantize.py")


@pytest.mark.slow
def test_a_model_that_would_lose_too_much_is_left_as_it_is(model, xray_folder, monkeypatch):
    (model / QUANTIZATION_FILE).write_text("an earlier one")
    monkeypatch.setattr(quantize, "MOST_LOST", -1.0)
    with pytest.raises(UserError, match="use the backend onnx or openvino"):
        quantize.quantize(model, *find_own_splits(model, [str(xray_folder)]))
    assert (model / QUANTIZATION_FILE).read_text() == "an earlier one"
    assert not list(model.glob(".*"))


@pytest.mark.slow
def test_the_ranges_of_the_default_model_belong_to_it():
    from PIL import Image

    image = Image.linear_gradient("L")
    exact, int8 = (
        Predictor.from_pretrained(DEFAULT_MODEL, backend=one) for one in ("torch", "int8")
    )
    assert int8.log_odds([image])[0] == pytest.approx(exact.log_odds([image])[0], abs=1.5)
    ranges = json.loads((DEFAULT_MODEL / QUANTIZATION_FILE).read_text())["data"]
    assert len(ranges) > 90
