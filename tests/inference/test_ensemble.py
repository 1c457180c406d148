import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import run_fork
from helpers import (
    TINY_CONFIGS,
    assert_one_sentence,
    call_script,
    draw_xray,
    rename_classes,
)
from transformers import AutoModelForImageClassification, PreTrainedModel

from pneumonia_hf import Predictor
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import choose_split
from pneumonia_hf.evaluation.context import EvaluationConfig
from pneumonia_hf.evaluation.evaluate import evaluate_predictor
from pneumonia_hf.evaluation.report import write_report
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.inference.network import CONFIG_KEY, Network
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE
from pneumonia_hf.reasons import Reason

IMAGES = [draw_xray(seed, ill=seed % 2 == 0, size=(70 + 9 * seed, 90)) for seed in range(6)]
SETTINGS = {
    "members": ["seed-1", "seed-2"],
    "threshold": 0.4,
    "refer_low": 0.3,
    "refer_high": 0.6,
    "temperature": 1.5,
}


def reasons_of(predictor: Predictor) -> list[Reason]:
    return [caveat.reason for caveat in predictor.caveats]


def copy_model(model: Path, folder: Path, seed: int | None = None, **settings) -> Path:
    """Copy a saved model, optionally with other weights in its head and other settings."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("checkpoints"))
    network: PreTrainedModel = AutoModelForImageClassification.from_pretrained(folder)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            weight = head_of(network).weight
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    setattr(network.config, CONFIG_KEY, getattr(network.config, CONFIG_KEY) | settings)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ensemble_folder(tmp_path_factory, tiny_model) -> Path:
    """Two members and their ensemble.json."""
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    copy_model(tiny_model, folder / "seed-1", 1, threshold=0.2, refer_low=0.1, refer_high=0.3)
    copy_model(tiny_model, folder / "seed-2", 2, threshold=0.9, refer_low=0.5, refer_high=0.95)
    (folder / ENSEMBLE_FILE).write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture
def broken(ensemble_folder, tmp_path) -> Path:
    """A copy of the ensemble that a test may damage."""
    return shutil.copytree(ensemble_folder, tmp_path / "broken")


def list_members(folder: Path) -> list[Path]:
    return [folder / "seed-1", folder / "seed-2"]


def test_log_odds_are_the_mean_of_the_members_log_odds_over_the_temperature(ensemble_folder):
    one, two = (
        Predictor.from_pretrained(m).log_odds(IMAGES) for m in list_members(ensemble_folder)
    )
    assert np.abs(one - two).max() > 0.1
    several = Predictor.from_pretrained(list_members(ensemble_folder))
    assert np.array_equal(several.log_odds(IMAGES), (one + two) / 2)
    whole = Predictor.from_pretrained(ensemble_folder)
    assert np.allclose(whole.log_odds(IMAGES), (one + two) / 3, atol=1e-12)
    in_batches_of_one = np.concatenate([whole.log_odds([image]) for image in IMAGES])
    assert np.allclose(whole.log_odds(IMAGES, batch_size=4), in_batches_of_one, atol=1e-5)


def test_members_of_other_families_and_sizes_use_their_own_preprocessing(ensemble_folder):
    config = TINY_CONFIGS["vit-base"].__class__.from_dict(
        TINY_CONFIGS["vit-base"].to_dict() | {"id2label": {0: "PNEUMONIA", 1: "NORMAL"}}
    )
    torch.manual_seed(0)
    vit = AutoModelForImageClassification.from_config(config)
    other = Predictor(Network(vit, make_processor(32, (0.5,) * 3, (0.5,) * 3), "vit"))
    first = Predictor.from_pretrained(ensemble_folder / "seed-1")
    ensemble = Predictor(first.network, other.network)
    expected = (first.log_odds(IMAGES) + other.log_odds(IMAGES)) / 2
    assert np.array_equal(ensemble.log_odds(IMAGES), expected)
    assert ensemble.name == "seed-1 + vit"
    assert reasons_of(ensemble) == [Reason.NO_COMMON_THRESHOLD, Reason.NO_OWN_THRESHOLD]
    # The mean of its logit and logit(0.5) = 0 is half of its logit.
    low = ensemble.operating_point.low
    assert np.log(low / (1 - low)) == pytest.approx(np.log(0.1 / 0.9) / 2)


def test_ensemble_uses_its_own_threshold_if_it_has_one(ensemble_folder):
    point = Predictor.from_pretrained(ensemble_folder).operating_point
    assert (point.threshold, point.low, point.high) == (0.4, 0.3, 0.6)
    assert Predictor.from_pretrained(ensemble_folder).predict(IMAGES[0]).threshold == 0.4


def test_several_models_use_the_mean_of_their_threshold_logits_and_say_so(ensemble_folder):
    predictor = Predictor.from_pretrained(list_members(ensemble_folder))
    # Odds of 1/4 and 9: their geometric mean is 1.5.
    assert predictor.operating_point.threshold == pytest.approx(0.6)
    assert predictor.operating_point.low == pytest.approx(0.25)
    assert predictor.predict(IMAGES[0]).caveats[-1].reason == Reason.NO_COMMON_THRESHOLD
    assert reasons_of(predictor) == [Reason.NO_COMMON_THRESHOLD]


def test_one_model_in_a_list_is_that_model(ensemble_folder):
    one = Predictor.from_pretrained([ensemble_folder / "seed-1"])
    assert len(one.networks) == 1 and one.operating_point.threshold == 0.2
    assert one.name == str(ensemble_folder / "seed-1")


def test_one_member_and_two_equal_ones_give_the_same_predictions(ensemble_folder, tmp_path):
    found = []
    for members in (["a", "b"], ["a"]):
        folder = tmp_path / f"of-{len(members)}"
        for name in members:
            shutil.copytree(ensemble_folder / "seed-1", folder / name)
        (folder / ENSEMBLE_FILE).write_text(json.dumps(SETTINGS | {"members": members}))
        predictor = Predictor.from_pretrained(folder)
        same = Predictor(*predictor.networks, settings=SETTINGS)
        found += [predictor.predict_all(IMAGES), same.predict_all(IMAGES)]
    assert found[0][0].threshold == 0.4
    assert found[0] == found[1] == found[2] == found[3]
    # What takes a single model would leave the temperature of the ensemble of one out.
    with pytest.raises(UserError, match="of-1 is an ensemble; give one of its members"):
        _ = predictor.network
    with pytest.raises(UserError, match="of-1 is an ensemble itself"):
        Predictor.from_pretrained([folder, ensemble_folder / "seed-2"])


def test_ensemble_with_tta_averages_over_views_and_members(ensemble_folder):
    members = [Predictor.from_pretrained(m, tta=True) for m in list_members(ensemble_folder)]
    ensemble = Predictor.from_pretrained(ensemble_folder, tta=True)
    expected = np.mean([member.log_odds(IMAGES) for member in members], axis=0) / 1.5
    assert np.array_equal(ensemble.log_odds(IMAGES), expected)
    assert ensemble.tta and reasons_of(ensemble) == [Reason.TTA_ON, Reason.TTA_STRANGE]


@pytest.mark.parametrize(
    "damage",
    [
        {"members": []},
        {"members": "seed-1"},
        {"members": [1, 2]},
        {"threshold": None},
        {"threshold": 0.9},  # above its own range
        {"refer_high": float("nan")},
        {"temperature": 0},
    ],
)
def test_damaged_settings_are_rejected_in_one_sentence(broken, damage):
    (broken / ENSEMBLE_FILE).write_text(json.dumps(SETTINGS | damage))
    with pytest.raises(UserError, match=r"ensemble.json is damaged") as caught:
        Predictor.from_pretrained(broken)
    assert "\n" not in str(caught.value)


def test_settings_that_are_not_a_json_object_are_rejected(broken):
    for text in ("{", "[]", "3", "null", '{"members": ["seed-1"]}'):
        (broken / ENSEMBLE_FILE).write_text(text)
        with pytest.raises(UserError, match=r"ensemble.json is damaged"):
            Predictor.from_pretrained(broken)


def test_missing_and_damaged_members_are_rejected_in_one_sentence(broken, monkeypatch):
    weights = broken / "seed-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"seed-2 cannot be loaded") as caught:
        Predictor.from_pretrained(broken)
    assert "\n" not in str(caught.value)
    shutil.rmtree(broken / "seed-2")
    # A relative path with one slash could be a Hub id; the Hub must not be asked.
    monkeypatch.chdir(broken.parent)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub")
    )
    with pytest.raises(UserError, match="The member seed-2 of the ensemble broken is not a saved"):
        Predictor.from_pretrained("broken")


def test_ensembles_of_ensembles_are_rejected(broken, ensemble_folder):
    with pytest.raises(UserError, match="is an ensemble itself"):
        Predictor.from_pretrained([ensemble_folder, ensemble_folder / "seed-1"])
    shutil.copy(broken / "seed-1" / "config.json", broken)
    (broken / ENSEMBLE_FILE).write_text(json.dumps(SETTINGS | {"members": [".", "seed-1"]}))
    with pytest.raises(UserError, match="is an ensemble itself"):
        Predictor.from_pretrained(broken)


def test_no_models_or_one_revision_for_several_are_rejected(ensemble_folder):
    with pytest.raises(UserError, match="none is given"):
        Predictor.from_pretrained([])
    with pytest.raises(UserError, match="each model its own"):
        Predictor.from_pretrained(list_members(ensemble_folder), "v1")


def test_own_test_split_is_common_to_all_members(broken, xray_folder):
    predictor = Predictor.from_pretrained(broken)
    run = json.loads((broken / "seed-1" / "run.json").read_text())
    assert len(choose_split(xray_folder, "test", predictor)[1]) == len(run["hashes"]["test"])
    # The second member was trained on one test image of the first.
    other = json.loads((broken / "seed-2" / "run.json").read_text())
    moved = other["hashes"]["test"].pop()
    other["hashes"]["train"].append(moved)
    (broken / "seed-2" / "run.json").write_text(json.dumps(other))
    _, data = choose_split(xray_folder, "test", predictor)
    assert len(data) == len(run["hashes"]["test"]) - 1
    config = EvaluationConfig(resamples=50)
    assert evaluate_predictor(predictor, data, config=config).evaluation.seen["train"] == 0
    report = evaluate_predictor(
        predictor, load_splits(xray_folder)["all"], config=EvaluationConfig(resamples=50)
    )
    assert report.evaluation.seen["train"] == len(run["hashes"]["train"]) + 1
    (broken / "seed-2" / "run.json").unlink()
    with pytest.raises(UserError, match="does not record its own test split"):
        choose_split(xray_folder, "test", predictor)


def test_report_names_the_ensemble_and_hashes_the_weights_of_all_members(
    ensemble_folder, xray_folder, tmp_path
):
    predictor = Predictor.from_pretrained(list_members(ensemble_folder), tta=True)
    name, data = choose_split(xray_folder, "test", predictor)
    report = evaluate_predictor(
        predictor, data, "drawn", name, config=EvaluationConfig(resamples=50)
    )
    assert report.numbers["model"] == "seed-1 + seed-2" and report.numbers["tta"]
    files = [member / "model.safetensors" for member in list_members(ensemble_folder)]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert report.numbers["weights_sha256"] == "+".join(digests)
    write_report(report, tmp_path)
    notes = json.loads((tmp_path / "report.json").read_text())["notes"]
    reasons = (Reason.NO_COMMON_THRESHOLD, Reason.TTA_ON, Reason.TTA_STRANGE)
    assert {reason.value for reason in reasons} <= set(notes)
    assert Reason.TTA_ON.value in (tmp_path / "report.md").read_text()


def test_predict_script_takes_several_models_and_tta(ensemble_folder, tmp_path):
    image = tmp_path / "one.png"
    IMAGES[0].save(image)
    log_odds = {}
    for name, flags in {
        "folder": [ensemble_folder, "--tta"],
        "list": [*list_members(ensemble_folder), "--tta"],
        "plain": list_members(ensemble_folder),
    }.items():
        table = tmp_path / f"{name}.csv"
        done = call_script("predict.py", "--input", image, "--output", table, "--model", *flags)
        assert done.returncode == 0, done.stderr
        with table.open() as lines:
            (row,) = csv.DictReader(lines)
        assert (Reason.TTA_ON.value in row["warnings"]) == ("--tta" in flags)
        probability = float(row["probability"])
        log_odds[name] = np.log(probability / (1 - probability))
    assert log_odds["list"] == pytest.approx(1.5 * log_odds["folder"], abs=1e-4)
    assert log_odds["plain"] != pytest.approx(log_odds["list"], abs=1e-4)


def test_evaluate_script_scores_an_ensemble_but_writes_no_card(
    ensemble_folder, xray_folder, tmp_path
):
    data = ["--data_dir", xray_folder, "--split", "test", "--output_dir", tmp_path / "report"]
    data += ["--quick", "--resamples", 20]
    done = call_script("evaluate_model.py", "--model", ensemble_folder, "--tta", *data)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (numbers["model"], numbers["threshold"]) == ("run", 0.4)
    assert Reason.TTA_ON.value in numbers["notes"]
    again = [*data, "--overwrite", "--add_to_card", "--model"]
    for flags in ([ensemble_folder], list_members(ensemble_folder)):
        done = call_script("evaluate_model.py", *again, *flags)
        assert_one_sentence(done, "--add_to_card", "no card")
    done = call_script("evaluate_model.py", *again, ensemble_folder / "seed-1", "--tta")
    assert_one_sentence(done, "--add_to_card", "--tta")


@pytest.mark.slow
def test_app_serves_an_ensemble_folder(ensemble_folder, tmp_path):
    # In a separate process: gradio leaves sockets open if the app is only built.
    code = """
import sys
from pneumonia_hf import Predictor
from pneumonia_hf.demo.app import build_demo
demo = build_demo(Predictor.from_pretrained(sys.argv[1]))
print([one.value for one in demo.blocks.values() if "Model:" in str(getattr(one, "value", ""))])
"""
    done = run_fork(code, ensemble_folder, log=tmp_path / "log")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "**Model:** run" in done.stdout
    assert str(ensemble_folder.parent) not in done.stdout


def test_ensemble_has_an_attribution_map(ensemble_folder):
    from pneumonia_hf.inference.attribution import attribute

    found = attribute(Predictor.from_pretrained(ensemble_folder), IMAGES[0])
    attribution_map = found.values
    assert attribution_map.shape == IMAGES[0].size[::-1]
    assert 0 <= attribution_map.min() and attribution_map.max() <= 1


@pytest.fixture
def renamed(tiny_model, tmp_path):
    model = shutil.copytree(
        tiny_model, tmp_path / "renamed", ignore=shutil.ignore_patterns("checkpoints")
    )
    return rename_classes(model, "Lung opacity", "healthy")  # in the other order


def test_members_whose_classes_have_other_names_form_an_ensemble(tiny_model, renamed, tmp_path):
    names = ["PNEUMONIA", "lung opacity"]
    one = Predictor.from_pretrained(tiny_model)
    other = Predictor.from_pretrained(renamed, positive_label="lung opacity")
    assert np.array_equal(other.log_odds(IMAGES), -one.log_odds(IMAGES))
    both = Predictor.from_pretrained([tiny_model, renamed], positive_label=names)
    assert np.allclose(both.log_odds(IMAGES), 0)
    folder = tmp_path / "together"
    folder.mkdir()
    settings = SETTINGS | {"members": [str(tiny_model), str(renamed)]}
    (folder / ENSEMBLE_FILE).write_text(json.dumps(settings))
    kept = Predictor.from_pretrained(folder, positive_label=names)
    assert np.allclose(kept.log_odds(IMAGES), 0)
    twice = Predictor.from_pretrained([renamed, renamed], positive_label="lung opacity")
    assert np.array_equal(twice.log_odds(IMAGES), other.log_odds(IMAGES))
    for models in ([tiny_model] * 3, [tiny_model], tiny_model, folder):
        with pytest.raises(UserError, match=r"POSITIVE_LABEL has [23] names"):
            labels = names if models is not folder else [*names, "x"]
            Predictor.from_pretrained(
                models, positive_label=labels, flags=("MODEL_ID", "POSITIVE_LABEL")
            )


def test_scripts_offer_what_their_errors_advise(tiny_model, renamed, tmp_path):
    image, table = tmp_path / "one.png", tmp_path / "out.csv"
    IMAGES[0].save(image)
    flags = ["predict.py", "--input", image, "--output", table, "--model", renamed]
    done = call_script(*flags)
    assert_one_sentence(done, "its classes: Lung opacity, healthy", "as --positive_label")
    assert call_script(*flags, "--positive_label", "lung opacity").returncode == 0
    flags += [tiny_model, "--overwrite", "--positive_label", "Lung opacity", "pneumonia"]
    assert call_script(*flags).returncode == 0
    for name in ("predict", "evaluate_model", "export_onnx", "recalibrate", "quantize"):
        assert "--positive_label" in call_script(f"{name}.py", "--help").stdout, name
