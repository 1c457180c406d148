"""Runs that are interrupted anywhere end with the weights of an uninterrupted one."""

import os
import re
import shutil
import signal
import sys

import kill_training
import pytest
from helpers import TINY_CONFIGS, TINY_SIZES, draw_folder, save_tiny_body, train_tiny
from same_bits import assert_same_last_checkpoint, assert_same_model
from transformers import TrainerCallback

from pneumonia_hf.errors import Stopped
from pneumonia_hf.models.xray_cnn import XrayCnnConfig
from pneumonia_hf.training.checkpoints import (
    last_checkpoint,
    list_checkpoints,
    phase_folder,
)
from pneumonia_hf.training.trainer import XrayTrainer

# All options that keep a state between steps.
STATEFUL = {
    "num_train_epochs": 4,
    "ema_decay": 0.9,
    "mixup": 0.4,
    "cutmix": 1.0,
    "imbalance": "sampler",
    "layer_decay": 0.8,
    "early_stopping_patience": 0,
    # The AUROC of drawn images is 1 after the first epoch: the best checkpoint would be the first.
    "metric_for_best_model": "loss",
}
TWO_EPOCHS = {"num_train_epochs": 2, "metric_for_best_model": "loss"}
# What the Trainer restores besides the weights.
RESTORING = ("_load_rng_state", "_load_optimizer_and_scheduler")


class Cut(TrainerCallback):
    """Calls a function at the end of a step."""

    def __init__(self, step: int, act) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


class Killed(BaseException):
    """Stands for SIGKILL where the process must not end."""


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def train_with(callback, body, data, folder, **changes):
    return train_tiny("vit-base", body, data, folder, callbacks=[callback], **changes)


class StopAtLastCheckpoint(TrainerCallback):
    """Ends a run after its last checkpoint, before the model is saved."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise Killed


def assert_resumed_like(whole, run, after: int) -> None:
    """Check the last checkpoint and the saved model of a resumed run."""
    assert_same_last_checkpoint(whole, run, after=after)
    assert_same_model(whole, run)


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save_tiny_body("vit-base", tmp_path_factory.mktemp("body"))


@pytest.mark.slow
def test_mean_of_the_weights_counts_the_steps_before_a_resume(tmp_path, body, xray_folder):
    settings = STATEFUL | {"ema_decay": 0.0, "average_from": 0.3}
    whole = train_tiny("vit-base", body, xray_folder, tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        train_with(Cut(11, terminate), body, xray_folder, tmp_path / "cut", **settings)
    train_tiny("vit-base", body, xray_folder, tmp_path / "cut", resume=True, **settings)
    assert_resumed_like(whole, tmp_path / "cut", after=11)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, body, xray_folder):
    """An uninterrupted run with all options that keep a state."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train_tiny("vit-base", body, xray_folder, folder, **STATEFUL)


@pytest.fixture(scope="module")
def cut(tmp_path_factory, body, xray_folder):
    """The same run, interrupted at step 7."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    with pytest.raises(Stopped):
        train_with(Cut(7, terminate), body, xray_folder, folder, **STATEFUL)
    return folder


# An epoch has 5 steps.
@pytest.mark.parametrize(
    "step", [*(pytest.param(one, marks=pytest.mark.slow) for one in (3, 7)), 10]
)
def test_sigterm_saves_within_an_epoch_and_the_run_continues_from_there(
    tmp_path, body, xray_folder, whole, step
):
    run = tmp_path / "run"
    with pytest.raises(Stopped, match=f"checkpoint of step {step}; .*--resume"):
        train_with(Cut(step, terminate), body, xray_folder, run, **STATEFUL)
    assert last_checkpoint(phase_folder(run, 1)).name == f"checkpoint-{step}"
    assert not (run / "config.json").exists()
    train_tiny("vit-base", body, xray_folder, run, resume=True, **STATEFUL)
    assert_resumed_like(whole, run, after=step)


@pytest.fixture(scope="module")
def whole_and_cut(tmp_path_factory, xray_folder, tiny_body, backbone_name):
    """Two runs of 10 steps: an uninterrupted one, and one interrupted at step 7."""
    folder = tmp_path_factory.mktemp(f"resume-{backbone_name}")

    def train(name, **changes):
        return train_tiny(
            backbone_name, tiny_body, xray_folder, folder / name, **TWO_EPOCHS, **changes
        )

    whole = train("whole")
    with pytest.raises(Stopped):
        train("cut", callbacks=[Cut(7, terminate)])
    return whole, folder / "cut"


@pytest.mark.quick_families("vit-base")
def test_every_family_resumes_within_an_epoch_to_the_same_bits(
    tmp_path, xray_folder, tiny_body, backbone_name, whole_and_cut
):
    whole, cut = whole_and_cut
    run = shutil.copytree(cut, tmp_path / "run")
    train_tiny(backbone_name, tiny_body, xray_folder, run, resume=True, **TWO_EPOCHS)
    assert_resumed_like(whole, run, after=7)


@pytest.mark.slow
def test_run_with_a_merged_last_batch_resumes_within_an_epoch_to_the_same_bits(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(TINY_CONFIGS, "xray-cnn", XrayCnnConfig(widths=[8] * 5, depths=[1] * 5))
    monkeypatch.setitem(TINY_SIZES, "xray-cnn", 16)  # at which the deepest map is 1 x 1
    body = save_tiny_body("xray-cnn", tmp_path / "body")
    data = draw_folder(tmp_path / "data", patients=20)  # of which 28 images are for training
    settings = TWO_EPOCHS | {"per_device_train_batch_size": 9, "attribution_images": 0}
    whole = train_tiny("xray-cnn", body, data, tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        train_tiny("xray-cnn", body, data, tmp_path / "cut", callbacks=[Cut(4, terminate)],
                   **settings)  # fmt: skip
    assert len(list_checkpoints(phase_folder(whole, 1))) == 2
    train_tiny("xray-cnn", body, data, tmp_path / "cut", resume=True, **settings)
    assert_resumed_like(whole, tmp_path / "cut", after=4)
    assert last_checkpoint(phase_folder(whole, 1)).name == "checkpoint-6"  # and not 8


@pytest.mark.quick_families("vit-base")
def test_comparison_detects_a_broken_resume_of_every_family(
    tmp_path, xray_folder, tiny_body, backbone_name, whole_and_cut, monkeypatch
):
    """What the test above compares depends on what is restored."""
    whole, cut = whole_and_cut
    run = shutil.copytree(cut, tmp_path / "run")
    forget(monkeypatch, *RESTORING)
    changes = TWO_EPOCHS | {"resume": True, "callbacks": [StopAtLastCheckpoint()]}
    with pytest.raises(Killed):
        train_tiny(backbone_name, tiny_body, xray_folder, run, **changes)
    assert_last_weights_differ(whole, run, after=7)


@pytest.mark.parametrize("forgotten", RESTORING)
def test_comparison_detects_each_thing_that_is_not_restored(
    tmp_path, body, xray_folder, whole, cut, forgotten, monkeypatch
):
    run = shutil.copytree(cut, tmp_path / "run")
    forget(monkeypatch, forgotten)
    with pytest.raises(Killed):
        train_with(StopAtLastCheckpoint(), body, xray_folder, run, resume=True, **STATEFUL)
    assert_last_weights_differ(whole, run, after=7)


def forget(monkeypatch, *names: str) -> None:
    """Make these methods of the trainer restore nothing."""
    for name in names:
        monkeypatch.setattr(XrayTrainer, name, lambda *args, **kwargs: None)


def assert_last_weights_differ(whole, run, after: int) -> None:
    """Check that the comparison fails in the weights, and not only in the saved random state."""
    with pytest.raises(AssertionError, match=r"differs in .*model\.safetensors"):
        assert_same_last_checkpoint(whole, run, after=after)


@pytest.mark.slow
def test_run_that_is_moved_after_a_kill_still_finds_its_best_checkpoint(
    tmp_path, body, xray_folder, whole
):
    with pytest.raises(Killed):
        train_with(Cut(13, kill), body, xray_folder, tmp_path / "before", **STATEFUL)
    shutil.move(tmp_path / "before", tmp_path / "after")
    train_tiny("vit-base", body, xray_folder, tmp_path / "after", resume=True, **STATEFUL)
    assert_resumed_like(whole, tmp_path / "after", after=13)


@pytest.mark.slow
def test_phases_resume_in_the_interrupted_phase(tmp_path, body, xray_folder, capsys):
    changes = {"phases": ["head:1:1e-2", "last1:2:1e-3", "all:2:1e-3"], "ema_decay": 0.9}
    whole = train_tiny("vit-base", body, xray_folder, tmp_path / "whole", **changes)
    run = tmp_path / "run"
    cut = Cut(7, kill)  # the first phase has 5 steps, so that this is the second's
    with pytest.raises(Killed):
        train_with(cut, body, xray_folder, run, **changes)
    assert not (phase_folder(run, 3)).exists()
    capsys.readouterr()
    train_tiny("vit-base", body, xray_folder, run, resume=True, **changes)
    summary = capsys.readouterr().out
    assert "Phase 1 of 3" not in summary and "Phase 2 of 3" in summary and "Phase 3 of 3" in summary
    assert_same_last_checkpoint(whole, run, after=7, phase=2)
    assert_same_last_checkpoint(whole, run, after=0, phase=3)  # started after the interruption
    assert_same_model(whole, run)


@pytest.mark.slow
def test_plateau_schedule_resumes_with_its_rate(tmp_path, body, xray_folder):
    changes = {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "plateau_patience": 0,
        "num_train_epochs": 4,
        "early_stopping_patience": 0,
    }
    whole = train_tiny("vit-base", body, xray_folder, tmp_path / "whole", **changes)
    with pytest.raises(Killed):
        train_with(Cut(17, kill), body, xray_folder, tmp_path / "run", **changes)
    train_tiny("vit-base", body, xray_folder, tmp_path / "run", resume=True, **changes)
    assert_resumed_like(whole, tmp_path / "run", after=17)


@pytest.mark.slow
def test_early_stopping_counts_the_same_after_a_kill(tmp_path, body, xray_folder, monkeypatch):
    """Also where the kill comes after the evaluation with which training stops early."""
    from pneumonia_hf.training import train as training

    changes = {"num_train_epochs": 6, "early_stopping_patience": 2, "save_total_limit": None}
    scores = {5: 0.6, 10: 0.9, 15: 0.8, 20: 0.7, 25: 0.99, 30: 0.99}
    steps = []
    measure = training.compute_validation_metrics

    def give(prediction, validation):
        steps.append(5 * (len(steps) + 1))
        return measure(prediction, validation) | {"auroc": scores[steps[-1]]}

    monkeypatch.setattr(training, "compute_validation_metrics", give)
    run = tmp_path / "run"
    train_tiny("vit-base", body, xray_folder, run, **changes)
    assert steps == [5, 10, 15, 20]
    assert_phase_ends_at(run, 20, best=10)
    (phase_folder(run, 1) / "outcome.json").unlink()  # as if killed before it was written
    (run / "run.json").unlink()
    train_tiny("vit-base", body, xray_folder, run, resume=True, **changes)
    assert steps == [5, 10, 15, 20]
    assert_phase_ends_at(run, 20, best=10)


@pytest.mark.slow
def test_evaluation_on_start_is_not_repeated_by_a_resumed_run(tmp_path, body, xray_folder):
    """One more evaluation in the log would be counted by early stopping."""
    changes = TWO_EPOCHS | {"eval_on_start": True}
    whole = train_tiny("vit-base", body, xray_folder, tmp_path / "whole", **changes)
    with pytest.raises(Stopped):
        train_with(Cut(7, terminate), body, xray_folder, tmp_path / "run", **changes)
    train_tiny("vit-base", body, xray_folder, tmp_path / "run", resume=True, **changes)
    assert_resumed_like(whole, tmp_path / "run", after=7)


def assert_phase_ends_at(run, step: int, best: int) -> None:
    from pneumonia_hf.training.checkpoints import read_outcome

    outcome = read_outcome(phase_folder(run, 1))
    assert (outcome.steps, outcome.checkpoint) == (step, f"checkpoint-{best}")


@pytest.mark.slow
def test_killed_processes_are_resumed_to_the_same_bits(tmp_path, monkeypatch, capsys):
    """Three kills by kill_training.py; see its docstring."""
    data = draw_folder(tmp_path / "data", patients=20, seed=5)
    flags = ["--data_dir", data, "--work_dir", tmp_path / "work", "--kills", 3, "--seed", 3]
    monkeypatch.setattr(sys, "argv", ["kill_training.py", *map(str, flags)])
    status, printed = kill_training.main(), capsys.readouterr().out
    assert status == 0, printed
    assert "bit-equal" in printed
    # The first kill comes before training, the others within it.
    assert "2 of 3 kills mattered" in printed, printed
    best = re.findall(r"the best checkpoint is phase-2/checkpoint-(\d+)", printed)
    assert best and int(best[0]) > 4, printed  # later than the first


@pytest.mark.slow
def test_checkpoint_of_the_last_step_of_an_epoch_has_its_evaluation(tmp_path, body, xray_folder):
    """Saved by steps, evaluated by epochs: the learning rate depends on the evaluation."""
    changes = {
        "num_train_epochs": 4,
        "save_strategy": "steps",
        "save_steps": 5,
        "save_total_limit": None,
        "load_best_model_at_end": False,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "plateau_patience": 0,
        "early_stopping_patience": 2,
    }
    whole = train_tiny("vit-base", body, xray_folder, tmp_path / "whole", **changes)
    with pytest.raises(Killed):
        train_with(Cut(7, kill), body, xray_folder, tmp_path / "run", **changes)
    train_tiny("vit-base", body, xray_folder, tmp_path / "run", resume=True, **changes)
    assert_resumed_like(whole, tmp_path / "run", after=7)
