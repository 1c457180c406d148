import errno
import json
import os
from pathlib import Path

import pytest
import torch
from helpers import assert_one_sentence, save_tiny_body, train_tiny
from safetensors.torch import load_file
from same_bits import assert_same_last_checkpoint, assert_same_model
from transformers import AutoModelForImageClassification, TrainerCallback

from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.network import CONFIG_KEY
from pneumonia_hf.models.backbones import backbone_of
from pneumonia_hf.training.checkpoints import UNFINISHED, list_checkpoints, phase_folder


def load_state(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    model = AutoModelForImageClassification.from_pretrained(folder)
    return model.state_dict(), backbone_of(model).head


@pytest.mark.quick_families("vit-base")
def test_saved_model_holds_every_tensor_of_the_best_checkpoint(
    tmp_path, xray_folder, tiny_body, backbone_name, monkeypatch
):
    from pneumonia_hf.statistics import calibration
    from pneumonia_hf.statistics.calibration import Temperature

    # Drawn images are separable, which would keep the temperature at 1.
    monkeypatch.setattr(
        calibration, "fit_temperature", lambda *_: Temperature(1.7, separable=False, at_bound=False)
    )
    # At this rate the model degrades after the first epoch: the best checkpoint is not the last.
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
    checkpoints = sorted(phase_folder(folder, 1).glob("checkpoint-*"))
    assert len(checkpoints) == 4
    aurocs = [entry["eval_auroc"] for entry in run["training"]["history"]]
    assert run["training"]["best_validation_metric"] == max(aurocs)
    best = folder / "checkpoints" / run["training"]["best_checkpoint"]

    saved, head = load_state(folder)
    expected, _ = load_state(best)
    temperature = run["validation"]["config"]["temperature"]
    assert temperature == 1.7
    for name in (f"{head}.weight", f"{head}.bias"):
        expected[name] = expected[name] / temperature
    assert saved.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(saved[name], expected[name])]
    assert different == []


@pytest.mark.parametrize("name", ["vit-base", "convnextv2-tiny"])
def test_best_checkpoint_is_saved_and_not_a_later_worse_one(
    tmp_path, xray_folder, name, monkeypatch
):
    from pneumonia_hf.training import train as training

    scores = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr(
        training,
        "compute_validation_metrics",
        lambda prediction, validation: {"auroc": next(scores)},
    )
    body = save_tiny_body(name, tmp_path / "body")
    folder = train_tiny(name, body, xray_folder, tmp_path / "run", save_total_limit=None)
    run = json.loads((folder / "run.json").read_text())
    first, *later = sorted(
        phase_folder(folder, 1).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    assert run["training"]["best_checkpoint"] == f"phase-1/{first.name}"
    saved = load_file(folder / "model.safetensors")
    best, last = (load_file(one / "model.safetensors") for one in (first, later[-1]))
    body_names = [key for key in saved if not key.startswith("classifier")]
    assert len(body_names) > 20
    assert all(torch.equal(saved[key], best[key]) for key in body_names)
    assert not all(torch.equal(saved[key], last[key]) for key in body_names)


def test_same_seed_gives_the_same_weights_bit_for_bit(tmp_path, xray_folder):
    body = save_tiny_body("vit-base", tmp_path / "body")
    runs = [
        train_tiny("vit-base", body, xray_folder, tmp_path / name, seed=seed, num_train_epochs=1)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    ]
    one, two, other = (load_file(folder / "model.safetensors") for folder in runs)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, xray_folder):
    import shutil

    body = save_tiny_body("vit-base", tmp_path / "body")
    keep = {"save_total_limit": None, "early_stopping_patience": 0}
    whole = train_tiny("vit-base", body, xray_folder, tmp_path / "whole", **keep)
    cut = tmp_path / "cut"
    first, *_ = list_checkpoints(phase_folder(whole, 1))
    assert first.name == "checkpoint-5"
    shutil.copytree(first, phase_folder(cut, 1) / first.name)
    shutil.copy(whole / "checkpoints" / "recipe.json", cut / "checkpoints")
    with pytest.raises(UserError, match="--resume"):
        train_tiny("vit-base", body, xray_folder, cut, **keep)
    with pytest.raises(UserError, match="begun with other augment_strength"):
        train_tiny("vit-base", body, xray_folder, cut, resume=True, augment=0.5, **keep)
    with pytest.raises(UserError, match="begun with other learning_rate"):
        train_tiny("vit-base", body, xray_folder, cut, resume=True, learning_rate=1e-5, **keep)
    # A later checkpoint that a kill left incomplete is ignored.
    torn = phase_folder(cut, 1) / UNFINISHED / "checkpoint-9999"
    shutil.copytree(list_checkpoints(phase_folder(whole, 1))[-1], torn)
    weights = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    resumed = train_tiny("vit-base", body, xray_folder, cut, resume=True, **keep)
    assert_same_last_checkpoint(whole, resumed, after=5)
    assert_same_model(whole, resumed)


def test_resuming_a_complete_run_changes_nothing(tmp_path, xray_folder, capsys):
    body = save_tiny_body("vit-base", tmp_path / "body")
    folder = train_tiny("vit-base", body, xray_folder, tmp_path / "run", num_train_epochs=1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    train_tiny("vit-base", body, xray_folder, folder, num_train_epochs=1, resume=True)
    assert "is complete already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_resume_starts_a_run_where_there_is_none(tmp_path, xray_folder):
    body = save_tiny_body("vit-base", tmp_path / "body")
    run = tmp_path / "run"
    folder = train_tiny("vit-base", body, xray_folder, run, num_train_epochs=1, resume=True)
    assert (folder / "config.json").exists()


@pytest.mark.slow
def test_saved_model_is_not_replaced_without_overwrite(tmp_path, xray_folder):
    body = save_tiny_body("vit-base", tmp_path / "body")
    folder = train_tiny("vit-base", body, xray_folder, tmp_path / "run", num_train_epochs=1)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        train_tiny("vit-base", body, xray_folder, folder, num_train_epochs=1, seed=5)
    assert (folder / "model.safetensors").read_bytes() == before
    train_tiny("vit-base", body, xray_folder, folder, num_train_epochs=1, seed=5, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before


def test_full_disk_at_the_end_leaves_the_older_model_complete(tmp_path, xray_folder, monkeypatch):
    from helpers import call_script
    from transformers import PreTrainedModel

    from pneumonia_hf import Predictor

    body = save_tiny_body("convnextv2-tiny", tmp_path / "body")
    folder = train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run", num_train_epochs=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    save = PreTrainedModel.save_pretrained

    def save_on_full_disk(self, target, **kwargs):
        if Path(target) == folder / UNFINISHED:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, target, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_on_full_disk)
    flags = {
        "--backbone": "convnextv2-tiny",
        "--weights": body,
        "--image_size": 64,
        "--data_dir": xray_folder,
        "--output_dir": folder,
        "--num_train_epochs": 1,
        "--cpu_threads": 1,
    }
    words = [word for pair in flags.items() for word in pair]
    done = call_script("train.py", *words, "--overwrite")
    assert_one_sentence(done, "The disk is full")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert not (folder / UNFINISHED).exists()
    Predictor.from_pretrained(folder)


@pytest.mark.quick_families("vit-base")
def test_model_folder_is_complete_and_names_no_local_path(saved_model, xray_folder):
    names = {path.name for path in saved_model.iterdir()}
    assert names == {
        "README.md",
        "checkpoints",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "run.json",
        "training_curves.png",
    } | ({"xray_cnn.py"} if saved_model.name == "xray-cnn" else set())
    config = json.loads((saved_model / "config.json").read_text())
    assert 0 < config[CONFIG_KEY]["threshold"] < 1
    for name in names - {"checkpoints", "model.safetensors", "training_curves.png"}:
        assert str(xray_folder.parent) not in (saved_model / name).read_text()
    run = json.loads((saved_model / "run.json").read_text())
    splits = run["hashes"]
    assert {split: len(set(splits[split])) for split in splits} == {
        split: numbers["images"] for split, numbers in run["data"]["parts"].items()
    }
    assert not set(splits["train"]) & set(splits["test"])


def test_model_folder_that_a_kill_left_incomplete_is_completed_by_resuming(
    tmp_path, xray_folder, monkeypatch
):
    body = save_tiny_body("vit-base", tmp_path / "body")
    whole = train_tiny("vit-base", body, xray_folder, tmp_path / "whole", num_train_epochs=1)
    replace = os.replace

    def replace_until_killed(source, target):
        if Path(target) == tmp_path / "cut" / "config.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_until_killed)
    with pytest.raises(KeyboardInterrupt):
        train_tiny("vit-base", body, xray_folder, tmp_path / "cut", num_train_epochs=1)
    monkeypatch.undo()
    cut = tmp_path / "cut"
    assert (cut / "model.safetensors").exists() and not (cut / "config.json").exists()
    train_tiny("vit-base", body, xray_folder, cut, num_train_epochs=1, resume=True)
    assert (cut / "config.json").read_bytes() == (whole / "config.json").read_bytes()
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_each_image_is_read_once_however_many_epochs(tmp_path, monkeypatch):
    from helpers import draw_folder

    from pneumonia_hf.data import cache
    from pneumonia_hf.inference import read_ahead

    data = draw_folder(tmp_path / "data", patients=24, seed=777)  # in no cache yet
    opened = {"cache": 0, "read_ahead": 0}
    for module in (cache, read_ahead):
        name, read = module.__name__.split(".")[-1], module.open_xray

        def count(*arguments, name=name, read=read):
            opened[name] += 1
            return read(*arguments)

        monkeypatch.setattr(module, "open_xray", count)
    body = save_tiny_body("convnextv2-tiny", tmp_path / "body")
    folder = train_tiny("convnextv2-tiny", body, data, tmp_path / "run", num_train_epochs=3)
    splits = json.loads((folder / "run.json").read_text())["data"]["parts"]
    assert opened["cache"] == sum(split["images"] for split in splits.values()) == 48
    assert opened["read_ahead"] == splits["validation"]["images"]  # for the threshold, as served
    opened["cache"] = 0
    train_tiny("convnextv2-tiny", body, data, tmp_path / "again", num_train_epochs=1)
    assert opened["cache"] == 0


def test_diverged_training_stops_with_a_sentence(tmp_path, xray_folder):
    body = save_tiny_body("vit-base", tmp_path / "body")
    with pytest.raises(UserError, match="diverged"):
        train_tiny("vit-base", body, xray_folder, tmp_path / "run", learning_rate=1e30)


class Ended(BaseException):
    """Ends a run whose saved model a test does not need."""


class Watch(TrainerCallback):
    """Keeps the model's tensors before the first step and after the last."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.model = model
        self.before = {name: value.clone() for name, value in model.state_dict().items()}

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.steps = state.global_step
        self.after = model.state_dict()
        raise Ended

    def changed(self, names: set[str]) -> set[str]:
        """Return which of these tensors have changed."""
        return {name for name in names if not torch.equal(self.before[name], self.after[name])}


def test_frozen_layer_groups_do_not_change_and_trained_ones_do(
    tmp_path, xray_folder, tiny_body, backbone_name
):
    watch = Watch()
    with pytest.raises(Ended):
        train_tiny(
            backbone_name,
            tiny_body,
            xray_folder,
            tmp_path / "run",
            callbacks=(watch,),
            trainable_layer_groups=2,
            num_train_epochs=1,
        )
    assert watch.steps == 5
    model = watch.model
    named = list(model.named_parameters())
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    trained = {name for name, parameter in named if parameter.requires_grad}
    assert len(frozen) > 2
    assert watch.changed(frozen) == set()
    groups = [*backbone_of(model).layer_groups(model), model.get_submodule(backbone_of(model).head)]
    of_groups = [
        {name for name, parameter in named if any(parameter is own for own in group.parameters())}
        for group in groups
    ]
    learns = [not names.isdisjoint(trained) for names in of_groups]
    assert learns == sorted(learns) and learns.count(True) >= 3  # the last groups, and the head
    assert trained == {name for names in of_groups if names & trained for name in names}
    # A weight whose gradient is 0 may keep its value, such as a bias before a batch norm; but
    # something in each group must change.
    for number, names in enumerate(of_groups):
        assert bool(watch.changed(names)) == learns[number], f"group {number} of {len(groups)}"

    # Running statistics are not parameters: a batch norm in training mode changes them even
    # without a gradient. Those with frozen weights are kept in evaluation mode.
    statistics = {
        name: {f"{name}.{buffer}" for buffer, _ in module.named_buffers(recurse=False)}
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    }
    for name, buffers in statistics.items():
        assert watch.changed(buffers) == (set() if f"{name}.weight" in frozen else buffers), name
