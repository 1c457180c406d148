"""recalibrate.py --threshold_on: the threshold of another hospital."""

import json
import shutil

import numpy as np
import pytest
from helpers import assert_one_sentence, call_script, draw_folder

from pneumonia_hf import Predictor
from pneumonia_hf.evaluation import own_threshold
from pneumonia_hf.models.model_folder import REPORTS_FILE


@pytest.fixture
def model(tiny_model, tmp_path):
    """A model with a report and a hospital of 100 images, as a full training run makes it."""
    ignored = shutil.ignore_patterns("checkpoints")
    folder = shutil.copytree(tiny_model, tmp_path / "model", ignore=ignored)
    run = json.loads((folder / "run.json").read_text())
    area = {"value": 0.9, "low": 0.8, "high": 1.0}
    rates = {name: area for name in ("auroc", "sensitivity", "specificity")}
    log_odds = {"normals": np.linspace(-4, 0, 51).tolist(),
                "pneumonias": np.linspace(0, 4, 51).tolist()}  # fmt: skip
    of = {"patients": 100, "normals": 50, "pneumonias": 50, **rates, "log_odds": log_odds}
    run["validation"]["hospitals"] = {"children": of}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / REPORTS_FILE).write_text("[]")
    return folder


def rates_at(threshold):
    """Return the rates of the hospital `children`, whose log odds are uniform."""
    log_odds = np.log(threshold / (1 - threshold))
    above = 1 - np.clip(log_odds / 4, 0, 1), np.clip(log_odds / 4 + 1, 0, 1)
    return dict(zip(("sensitivity", "specificity"), map(pytest.approx, above), strict=True))


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_only_the_threshold_changes_and_the_model_says_where_it_is_from(model, tmp_path):
    own = draw_folder(tmp_path / "mine", patients=20, seed=70_000)
    before, flags = read_files(model), ("--model", model, "--threshold_on", own)
    new = tmp_path / "new"
    done = call_script("recalibrate.py", *flags, "--output_dir", new)
    assert done.returncode == 0, done.stderr
    assert read_files(model) == before
    copied = read_files(new)
    changed = {name for name in before if copied.get(name) != before[name]}
    assert changed - {"seeds.json"} == {"config.json", "run.json", "README.md", REPORTS_FILE}
    old, config = (
        json.loads((folder / "config.json").read_text())["pneumonia_hf"] for folder in (model, new)
    )
    assert old.keys() == config.keys()
    assert {key for key in old if old[key] != config[key]} == {
        "threshold", "refer_low", "refer_high"
    }  # fmt: skip
    found = json.loads((new / "run.json").read_text())["own_threshold"]
    assert (found["data"], found["images"], found["NORMAL"], found["seen"]) == ("mine", 40, 20, 0)
    # What it says of these images is what the predictor then does.
    point = Predictor.from_pretrained(new)
    paths = sorted(own.rglob("*.png"))
    positive = [one.label == "PNEUMONIA" for one in point.predict_files(paths, refuse=False)]
    ill = np.array([path.parent.name == "PNEUMONIA" for path in paths])
    rates = found["rates"]["new"]
    assert rates["sensitivity"]["value"] == pytest.approx(np.mean(np.array(positive)[ill]))
    decisions = [one.decision for one in point.predict_files(paths, refuse=False)]
    assert rates["in_range"] <= np.mean([one == "REFER" for one in decisions])
    assert found["validation"]["children"] == {
        "old": rates_at(old["threshold"]), "new": rates_at(config["threshold"])
    }  # fmt: skip
    assert old["threshold"] != config["threshold"]
    assert f"Old threshold {old['threshold']:.4f}" in done.stdout
    assert "optimistically biased" in done.stdout and "images of children" in done.stdout
    card = " ".join((new / "README.md").read_text().split())
    assert "The threshold was chosen on 40 images of 40 patients of mine" in card
    assert f"| Threshold on P(PNEUMONIA) | {config['threshold']:.4f} |" in card
    again = call_script("recalibrate.py", *flags, "--output_dir", new)
    assert_one_sentence(again, "exists", "--output_dir")
    # In place, it is the same.
    assert call_script("recalibrate.py", *flags).returncode == 0
    assert {name: read_files(model)[name] for name in copied} == copied
    assert not (model / REPORTS_FILE).exists() and not list(model.glob(".*"))


def test_the_model_keeps_its_required_sensitivity(model, tmp_path, monkeypatch):
    config = json.loads((model / "config.json").read_text())
    config["pneumonia_hf"]["required_sensitivity"] = 0.875
    (model / "config.json").write_text(json.dumps(config))
    asked = []
    for name in ("choose_threshold", "measure_left_out"):
        function = getattr(own_threshold, name)
        monkeypatch.setattr(
            own_threshold, name, lambda *of, call=function: asked.append(of[-1]) or call(*of)
        )
    monkeypatch.setattr(own_threshold, "RESAMPLES", 3)
    own_threshold.choose_own_threshold(model, str(draw_folder(tmp_path / "mine", patients=20)))
    assert asked == [0.875, 0.875]


def test_few_images_or_both_sources_are_one_sentence(model, tmp_path):
    own, before = draw_folder(tmp_path / "mine", patients=19), read_files(model)
    flags = ["recalibrate.py", "--model", model, "--threshold_on", own]
    assert_one_sentence(call_script(*flags), "19 NORMAL and 19 PNEUMONIA", "20 of each class")
    assert_one_sentence(call_script(*flags, "--data_dir", own), "either --data_dir")
    assert read_files(model) == before
