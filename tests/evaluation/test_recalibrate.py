import json
import shutil
from functools import partial

import pytest
import torch
from helpers import assert_one_sentence, call_script, draw_folder
from safetensors.torch import load_file

from pneumonia_hf import Predictor
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation import recalibrate
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.models.model_folder import MODEL_FILES


def test_recalibration_gives_the_same_model_as_training(
    tiny_model, xray_folder, tmp_path, monkeypatch
):
    # With as many resamples as the tiny model was trained with: the ends of a range follow them.
    few = partial(recalibrate.calibrate, resamples=20, threshold_resamples=50)
    asked = []

    def calibrate(predictor, validation, required, **more):
        asked.append(required)
        return few(predictor, validation, **more)

    monkeypatch.setattr(recalibrate, "calibrate", calibrate)
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    before = json.loads((model / "config.json").read_text())["pneumonia_hf"]
    # As an earlier version could have saved it: overconfident, and without references.
    predictor = Predictor.from_pretrained(model)
    with torch.no_grad():
        head_of(predictor.network.model).weight *= 4
        head_of(predictor.network.model).bias *= 4
    earlier = {"temperature": before["temperature"] / 4, "attribution_references": {}}
    earlier |= {"required_sensitivity": 0.875}
    predictor.network.model.config.pneumonia_hf = before | earlier
    predictor.network.model.save_pretrained(model)
    run = json.loads((model / "run.json").read_text())
    (model / "run.json").write_text(json.dumps(run | {"own_threshold": {}}))
    other = draw_folder(tmp_path / "other", patients=3, seed=90_000)
    done = call_script("recalibrate.py", "--model", model, "--data_dir", other)
    assert_one_sentence(done, "validation images", "set --data_dir")
    done = call_script("recalibrate.py", "--model", model, "--data_dir", xray_folder)
    assert done.returncode == 0, done.stderr
    after = json.loads((model / "config.json").read_text())["pneumonia_hf"]
    for key in ("temperature", "threshold", "refer_low", "refer_high"):
        assert after[key] == pytest.approx(before[key], rel=1e-3), key
    assert after["attribution_references"].keys() == before["attribution_references"].keys()
    one, two = (load_file(folder / "model.safetensors") for folder in (tiny_model, model))
    assert all(torch.allclose(one[name], two[name], rtol=1e-3) for name in one)
    run = json.loads((model / "run.json").read_text())
    assert run["validation"]["config"] == after
    assert not run["validation"]["remarks"]["temperature_at_bound"]
    assert asked == [0.875] and "own_threshold" not in run
    assert not list(model.glob(".*"))


def test_own_images_get_the_hospitals_of_training(tmp_path, caplog):
    folders = [draw_folder(tmp_path / name, patients=3, seed=n) for n, name in enumerate("ab")]
    hashes = to_hex(hash_images(load_splits([str(one) for one in folders])["all"]))
    model = tmp_path / "model"
    model.mkdir()
    for name in MODEL_FILES:
        (model / name).touch()
    data = {"hospitals": ["nih=a,b"]}
    run = {"data": data, "hashes": {"train": hashes[:2], "validation": hashes[2:]}}
    (model / "run.json").write_text(json.dumps(run))
    splits = recalibrate.find_own_splits(model, [str(one) for one in folders])
    assert [set(one["hospital"]) for one in splits] == [{"nih"}, {"nih"}] and not caplog.text
    assert [to_hex(hash_images(one)) for one in splits] == [hashes[:2], hashes[2:]]
    named = [f"{name}={one}" for name, one in zip("cb", folders, strict=True)]
    _, validation = recalibrate.find_own_splits(model, named)
    assert set(validation["hospital"]) == {"b", "c"} and "--hospitals nih=a,b" in caplog.text
