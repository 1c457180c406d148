"""No training-serving skew: every way of scoring an image gives the same probability."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import REAL_XRAYS, ROOT, call_script, draw_xray
from PIL import Image

from pneumonia_hf import Predictor, read_xray
from pneumonia_hf.models.model_folder import DEFAULT_MODEL

# Answers to each line, a model folder and files, with a line: the scores of the files.
PLAIN_PIPELINE = """
import json, sys
from transformers import pipeline
for line in sys.stdin:
    folder, *files = json.loads(line)
    own = json.load(open(folder + "/config.json"))["model_type"] == "xray_cnn"
    classify = pipeline("image-classification", model=folder, trust_remote_code=own)
    scores = [{one["label"]: one["score"] for one in result} for result in classify(files)]
    assert not [name for name in sys.modules if name.split(".")[0] == "pneumonia_hf"]
    print("scores", json.dumps([score["PNEUMONIA"] for score in scores]), flush=True)
"""


@pytest.fixture(scope="module")
def score_with_plain_pipeline(tmp_path_factory):
    """Return a function that scores files in a process without our package: one for all tests."""
    folder = tmp_path_factory.mktemp("plain")
    with (
        (folder / "errors").open("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", PLAIN_PIPELINE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,  # outside of the repository, so that our package is not importable
        ) as process,
    ):

        def score(model, files) -> np.ndarray:
            process.stdin.write(json.dumps([str(model), *map(str, files)]) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith("scores "):
                    return np.array(json.loads(line.removeprefix("scores ")))
            raise AssertionError((folder / "errors").read_text()[-2000:])

        yield score


def score_with_script(folder, files, tmp_path) -> np.ndarray:
    table = tmp_path / "out.csv"
    done = call_script("predict.py", "--model", folder, "--input", *files, "--output", table)
    assert done.returncode == 0, done.stderr
    with table.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["file"] for row in rows] == [str(file) for file in files]
    return np.array([float(row["probability"]) for row in rows])


# Each way in which transformers loads a model: its own classes, timm's, and code in the folder.
@pytest.mark.families(
    "convnextv2-tiny", "vit-base", "deit-small", "dinov2-small", "resnet50", "xray-cnn"
)
@pytest.mark.quick_families()
def test_plain_pipeline_predictor_and_script_agree(
    saved_model, tmp_path, score_with_plain_pipeline
):
    files = []
    for number, size in enumerate([(80, 64), (224, 224), (500, 300), (333, 400)] * 3):
        image = draw_xray(number, ill=number % 2 == 0, size=size)
        name = tmp_path / f"{number}.{('png', 'jpeg', 'png')[number % 3]}"
        (image.convert("RGB") if number % 4 == 1 else image).save(name)
        files.append(name)
    ours = Predictor.from_pretrained(saved_model).probabilities([read_xray(f) for f in files])
    assert np.std(ours) > 0
    plain = score_with_plain_pipeline(saved_model, files)
    assert np.abs(plain - ours).max() <= 1e-5
    assert np.abs(score_with_script(saved_model, files, tmp_path) - ours).max() <= 1e-5


@pytest.mark.slow
def test_plain_pipeline_needs_read_xray_for_16_bit_and_coloured_files(
    tiny_model, tmp_path, score_with_plain_pipeline
):
    """As README and card say, the plain pipeline is exact for 8-bit grayscale files only."""
    plain = draw_xray(3, ill=True, size=(160, 120))
    levels = np.asarray(plain)
    plain.save(tmp_path / "8.png")
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "16.png")
    tint = np.stack([levels // 2, levels // 2, levels], axis=2)
    Image.fromarray(tint).save(tmp_path / "blue.png")
    files = [tmp_path / name for name in ("8.png", "16.png", "blue.png")]
    predictor = Predictor.from_pretrained(tiny_model)
    ours = predictor.probabilities([read_xray(file) for file in files])
    piped = score_with_plain_pipeline(tiny_model, files)
    assert piped[0] == pytest.approx(ours[0], abs=1e-5)
    assert abs(piped[1] - ours[1]) > 1e-3 and abs(piped[2] - ours[2]) > 1e-3
    # As in the card: the pipeline accepts the image that read_xray returns.
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(tiny_model))
    scores = {one["label"]: one["score"] for one in classify(read_xray(files[1]))}
    assert scores["PNEUMONIA"] == pytest.approx(ours[1], abs=1e-5)


@pytest.mark.parametrize("place", ["README.md", "pneumonia_hf/models/model_card.md"])
def test_docs_limit_the_plain_pipeline_to_8_bit_grayscale_files(place):
    text = " ".join((ROOT / place).read_text().split())
    assert "8-bit grayscale files" in text
    assert "classify(read_xray(" in text


@pytest.mark.slow
@pytest.mark.skipif(not REAL_XRAYS.exists(), reason="needs the real X-rays")
def test_default_model_agrees_on_real_xrays(score_with_plain_pipeline):
    folders = ["kaggle_val/NORMAL", "kaggle_val/PNEUMONIA", "train/NORMAL", "nih_adult/PNEUMONIA"]
    files = [file for name in folders for file in sorted((REAL_XRAYS / name).iterdir())[:5]]
    ours = Predictor.from_pretrained(DEFAULT_MODEL).probabilities([read_xray(f) for f in files])
    plain = score_with_plain_pipeline(DEFAULT_MODEL, files)
    assert np.abs(plain - ours).max() <= 1e-5
