import json
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_body, train_tiny
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from pneumonia_hf.backbones import backbone_of
from pneumonia_hf.errors import UserError
from pneumonia_hf.predictor import CONFIG_KEY


def load_state(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    model = AutoModelForImageClassification.from_pretrained(folder)
    return model.state_dict(), backbone_of(model).head


def test_finished_folder_holds_every_tensor_of_the_best_checkpoint(
    tmp_path, xray_folder, tiny_body, backbone_name
):
    # A rate that wrecks the model after the first epoch, so that the best is not the last.
    folder = train_tiny(
        backbone_name,
        tiny_body,
        xray_folder,
        tmp_path / "run",
        num_train_epochs=4,
        learning_rate=1e-2,
        save_total_limit=None,
        early_stopping_patience=0,
    )
    run = json.loads((folder / "run.json").read_text())
    checkpoints = sorted((folder / "checkpoints").glob("checkpoint-*"))
    assert len(checkpoints) == 4
    aurocs = [entry["eval_auroc"] for entry in run["training"]["history"]]
    assert run["training"]["best_validation_auroc"] == max(aurocs)
    best = folder / "checkpoints" / run["training"]["best_checkpoint"]

    finished, head = load_state(folder)
    expected, _ = load_state(best)
    temperature = run["validation"]["config"]["temperature"]
    assert temperature != 1
    for name in (f"{head}.weight", f"{head}.bias"):
        expected[name] = expected[name] / temperature
    assert finished.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(finished[name], expected[name])]
    assert different == []


@pytest.mark.parametrize("name", ["vit-base", "convnextv2-tiny"])
def test_best_checkpoint_wins_over_a_later_worse_one(tmp_path, xray_folder, name, monkeypatch):
    from pneumonia_hf import training

    scores = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr(
        training, "_compute_trainer_metrics", lambda prediction: {"auroc": next(scores)}
    )
    body = save_tiny_body(name, tmp_path / "body")
    folder = train_tiny(name, body, xray_folder, tmp_path / "run", save_total_limit=None)
    run = json.loads((folder / "run.json").read_text())
    first, *later = sorted(
        (folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    assert run["training"]["best_checkpoint"] == first.name
    finished = load_file(folder / "model.safetensors")
    best, last = (load_file(one / "model.safetensors") for one in (first, later[-1]))
    body_names = [key for key in finished if not key.startswith("classifier")]
    assert len(body_names) > 20
    assert all(torch.equal(finished[key], best[key]) for key in body_names)
    assert not all(torch.equal(finished[key], last[key]) for key in body_names)


def test_same_seed_gives_the_same_weights_bit_for_bit(tmp_path, xray_folder):
    body = save_tiny_body("vit-base", tmp_path / "body")
    runs = [
        train_tiny("vit-base", body, xray_folder, tmp_path / name, seed=seed)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    ]
    one, two, other = (load_file(folder / "model.safetensors") for folder in runs)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, xray_folder):
    import shutil

    body = save_tiny_body("vit-base", tmp_path / "body")
    keep = {"save_total_limit": None, "early_stopping_patience": 0}
    whole = train_tiny("vit-base", body, xray_folder, tmp_path / "whole", **keep)
    cut = tmp_path / "cut"
    first = min(
        (whole / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    shutil.copytree(first, cut / "checkpoints" / first.name)
    # The Trainer names the best checkpoint by its path.
    state = cut / "checkpoints" / first.name / "trainer_state.json"
    state.write_text(state.read_text().replace(str(whole), str(cut)))
    with pytest.raises(UserError, match="--resume"):
        train_tiny("vit-base", body, xray_folder, cut, **keep)
    resumed = train_tiny("vit-base", body, xray_folder, cut, resume=True, **keep)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_finished_model_is_not_replaced_without_overwrite(tmp_path, xray_folder):
    body = save_tiny_body("vit-base", tmp_path / "body")
    folder = train_tiny("vit-base", body, xray_folder, tmp_path / "run", num_train_epochs=1)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        train_tiny("vit-base", body, xray_folder, folder, num_train_epochs=1, seed=5)
    assert (folder / "model.safetensors").read_bytes() == before
    train_tiny("vit-base", body, xray_folder, folder, num_train_epochs=1, seed=5, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before


def test_model_folder_is_complete_and_tells_no_local_path(finished_model, xray_folder):
    names = {path.name for path in finished_model.iterdir()}
    assert names == {
        "README.md",
        "checkpoints",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "run.json",
    }
    config = json.loads((finished_model / "config.json").read_text())
    assert 0 < config[CONFIG_KEY]["threshold"] < 1
    for name in names - {"checkpoints", "model.safetensors"}:
        assert str(xray_folder.parent) not in (finished_model / name).read_text()
    run = json.loads((finished_model / "run.json").read_text())
    parts = run["hashes"]
    assert {part: len(set(parts[part])) for part in parts} == {
        part: numbers["images"] for part, numbers in run["data"]["parts"].items()
    }
    assert not set(parts["train"]) & set(parts["test"])


def test_diverged_training_stops_with_a_sentence(tmp_path, xray_folder):
    body = save_tiny_body("vit-base", tmp_path / "body")
    with pytest.raises(UserError, match="diverged"):
        train_tiny("vit-base", body, xray_folder, tmp_path / "run", learning_rate=1e30)


def test_frozen_stages_do_not_move(tmp_path, xray_folder, tiny_body, backbone_name):
    from conftest import TINY_SIZES

    from pneumonia_hf.backbones import ModelConfig, build_model

    model, _ = build_model(ModelConfig(backbone_name, str(tiny_body), TINY_SIZES[backbone_name], 1))
    stages = backbone_of(model).stages(model)
    frozen = [p for stage in stages[:-1] for p in stage.parameters()]
    assert frozen and not any(p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in stages[-1].parameters())
    assert all(p.requires_grad for p in model.get_submodule(backbone_of(model).head).parameters())
