import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import (
    draw_xray,
    save_tiny_body,
)

from pneumonia_hf import Predictor
from pneumonia_hf.inference.network import Network
from pneumonia_hf.models.build import ModelConfig, build_model


@pytest.mark.slow
def test_xray_cnn_folder_loads_without_this_package(tmp_path):
    torch.manual_seed(0)
    model, processor = build_model(
        ModelConfig("xray-cnn", str(save_tiny_body("xray-cnn", tmp_path / "body")), 64)
    )
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    image = draw_xray(2, ill=True)
    image.save(tmp_path / "scan.png")
    program = """
import json, sys
sys.modules["pneumonia_hf"] = None  # any import of it fails
from transformers import pipeline
found = pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)(sys.argv[2])
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(folder), str(tmp_path / "scan.png")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scores = {one["label"]: one["score"] for one in json.loads(done.stdout.splitlines()[-1])}
    expected = Predictor(Network(model, processor)).probabilities([image])[0]
    assert scores["PNEUMONIA"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_predictor_runs_no_code_of_a_model_folder(tmp_path):
    """In a new process that imports only the predictor."""
    model, processor = build_model(
        ModelConfig("xray-cnn", str(save_tiny_body("xray-cnn", tmp_path / "body")), 64)
    )
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "xray_cnn.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + (folder / "xray_cnn.py").read_text()
    )
    program = """
import sys
from pneumonia_hf import Predictor
print(type(Predictor.from_pretrained(sys.argv[1]).network.model).__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "pneumonia_hf.models.xray_cnn"
    build_model(ModelConfig("xray-cnn", str(folder), 64))  # nor does training
    assert not (tmp_path / "ran").exists()
