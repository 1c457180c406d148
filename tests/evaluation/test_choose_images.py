"""Which images are scored, and which the model has seen."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from helpers import assert_one_sentence, call_script, draw_folder, quick_flags

from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation import choose_images
from pneumonia_hf.evaluation.choose_images import choose_split, leave_out_used
from pneumonia_hf.evaluation.context import EvaluationConfig
from pneumonia_hf.evaluation.evaluate import evaluate_predictor


def test_own_test_split_is_found_by_the_bytes_of_its_images(predictor, tiny_model, xray_folder):
    run = json.loads((tiny_model / "run.json").read_text())
    name, data = choose_split(xray_folder, "test", predictor)
    assert (name, len(data)) == ("test", run["data"]["parts"]["test"]["images"])
    assert run["data"]["parts"]["test"]["share"] == pytest.approx(len(data) / 96, abs=1e-4)
    report = evaluate_predictor(predictor, data, config=EvaluationConfig(resamples=100))
    assert report.evaluation.seen["train"] == report.evaluation.seen["validation"] == 0


def test_own_test_split_is_found_in_a_folder_with_other_splits(predictor, xray_folder, tmp_path):
    shutil.copytree(xray_folder, tmp_path / "train")
    name, data = choose_split(tmp_path, "test", predictor)
    assert (name, len(data)) == ("test", len(choose_split(xray_folder, "test", predictor)[1]))


def test_split_folders_are_preferred_to_own_splits(predictor, tmp_path):
    draw_folder(tmp_path / "train", patients=2, seed=50_000)
    draw_folder(tmp_path / "test", patients=3, seed=60_000)
    assert choose_split(tmp_path, None, predictor)[0] == "test"
    assert len(choose_split(tmp_path, "train", predictor)[1]) == 4
    with pytest.raises(UserError, match=r"has no val folder and none of the \d+ images"):
        choose_split(tmp_path, "val", predictor)
    with pytest.raises(UserError, match="Unknown split"):
        choose_split(tmp_path, "tset", predictor)
    with pytest.raises(UserError, match=r"none of the .* images of the model's own test split"):
        choose_split(tmp_path / "test", "test", predictor)


def test_used_images_of_other_classes_are_counted(tmp_path, monkeypatch, caplog):
    images = []
    for number, folder in enumerate(["EDEMA"] * 3 + ["MASS"] * 2):
        path = tmp_path / f"{number}.png"
        path.write_bytes(bytes([number]))
        images.append(OtherImage(path, path.name, folder, {}))
    used = {hashlib.sha256(bytes([number])).hexdigest()[:16] for number in (0, 1)}
    monkeypatch.setattr(choose_images, "own_hashes", lambda *_: used)
    assert leave_out_used(images, None) == images[2:]
    assert caplog.messages == [
        "2 of 3 images of EDEMA left out: the model was trained or chosen on them."
    ]


def test_only_listed_images_are_scored_also_of_other_classes(tiny_model, adults, tmp_path):
    data = load_splits(adults)["all"]
    hashes = to_hex(hash_images(data))
    labels = np.array(data["label"][:])
    rows = [*np.flatnonzero(labels == 0)[:3], *np.flatnonzero(labels == 1)[:2]]
    other = hashlib.sha256((adults / "OTHER" / "x1.png").read_bytes()).hexdigest()[:16]
    listed = tmp_path / "listed.txt"
    listed.write_text("\n".join([*(hashes[row] for row in rows), other]))
    flags = quick_flags(tiny_model, adults, tmp_path / "report")
    done = call_script("evaluate_model.py", *flags, "--images", listed, "--other_classes", "OTHER")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["NORMAL"], report["PNEUMONIA"]) == (3, 2)
    assert report["other_classes"][0]["count"] == 1
    listed.write_text("0123456789abcdef")
    done = call_script("evaluate_model.py", *flags, "--images", listed, "--overwrite")
    assert_one_sentence(done, "None of the images", "--images")
    done = call_script("evaluate_model.py", *flags, "--images", tmp_path / "no", "--overwrite")
    assert_one_sentence(done, "/no cannot be read")
    done = call_script("evaluate_model.py", *flags, "--robustness", "-5", "--overwrite")
    assert_one_sentence(done, "--robustness is -5")
