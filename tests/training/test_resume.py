"""Runs that are interrupted anywhere end with the weights of an uninterrupted one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT, TINY_CONFIGS, TINY_SIZES, draw_folder, save_tiny_body, train_tiny
from safetensors.torch import load_file
from same_bits import assert_same_last_checkpoint, assert_same_model
from transformers import TrainerCallback

from pneumonia_hf.errors import Stopped, UserError
from pneumonia_hf.models.xray_cnn import XrayCnnConfig
from pneumonia_hf.training import averaging, checkpoints
from pneumonia_hf.training.averaging import AVERAGE_FILE
from pneumonia_hf.training.checkpoints import (
    UNFINISHED,
    install_checkpoint,
    last_checkpoint,
    list_checkpoints,
    phase_folder,
    remove_checkpoint,
    remove_old,
)
from pneumonia_hf.training.run_state import lock_run
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
def test_killed_processes_are_resumed_to_the_same_bits(tmp_path):
    """Three kills by kill_training.py; see its docstring."""
    data = draw_folder(tmp_path / "data", patients=24, images=2, seed=5)
    script = ROOT / "tests" / "kill_training.py"
    flags = ["--data_dir", data, "--work_dir", tmp_path / "work", "--kills", 3, "--seed", 3]
    done = subprocess.run(
        [sys.executable, script, *map(str, flags)], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "bit-equal" in done.stdout
    # The first kill comes before training, the others within it.
    assert "2 of 3 kills mattered" in done.stdout, done.stdout
    best = re.findall(r"the best checkpoint is phase-2/checkpoint-(\d+)", done.stdout)
    assert best and int(best[0]) > 9, done.stdout  # later than the first


PYTHON = [sys.executable]
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]


def start_long_run(body, data, folder, *more, command=PYTHON) -> subprocess.Popen:
    """Start a run of minutes in a process of its own, and wait until it has a checkpoint."""
    flags = ["--backbone", "vit-base", "--weights", body, "--data_dir", data]
    flags += ["--output_dir", folder, "--num_train_epochs", 400, "--precision", "fp32"]
    flags += ["--early_stopping_patience", 0, "--cpu_threads", 1, "--report_to", "none", *more]
    process = subprocess.Popen(
        [*command, "train_scripts/train.py", *map(str, flags)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(phase_folder(folder, 1).glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_process_saves_a_checkpoint_and_exits_after_sigterm(tmp_path, body, xray_folder):
    process = start_long_run(body, xray_folder, tmp_path / "run")
    try:
        process.terminate()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "Traceback" not in err
    assert "Stopped by SIGTERM, with a checkpoint of step" in err
    assert last_checkpoint(phase_folder(tmp_path / "run", 1)) is not None


@pytest.mark.slow
def test_run_saves_a_checkpoint_and_ends_after_sigterm_to_its_launcher(tmp_path, body, xray_folder):
    """accelerate's launcher of one process ends and does not pass the signal on."""
    process = start_long_run(body, xray_folder, tmp_path / "run", command=LAUNCHER)
    process.terminate()
    _, err = process.communicate(timeout=60)  # until the run has ended
    assert "Stopped by SIGTERM, with a checkpoint of step" in err


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds workers in /proc")
def test_killed_data_loader_worker_is_reported_in_one_sentence(tmp_path, body, xray_folder):
    more = ["--dataloader_num_workers", 1]
    process = start_long_run(body, xray_folder, tmp_path / "run", *more)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    try:
        while process.poll() is None:
            with open(children) as file:
                for child in file.read().split():
                    with open(f"/proc/{child}/cmdline") as command:
                        if "train.py" in command.read():  # a fork, not the resource tracker
                            os.kill(int(child), signal.SIGKILL)
            time.sleep(0.01)
        _, err = process.communicate(timeout=60)
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, err[-2000:]
    assert "Traceback" not in err
    assert "lower --dataloader_num_workers" in err
    assert last_checkpoint(phase_folder(tmp_path / "run", 1)) is not None


def make_checkpoint(folder, step: int):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "file").write_text("x")
    return checkpoint


def test_checkpoint_exists_only_when_it_is_complete(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / UNFINISHED, 5)
    assert last_checkpoint(tmp_path) is None
    flushed = []
    monkeypatch.setattr(checkpoints, "flush_to_disk", flushed.extend)
    install_checkpoint(tmp_path, "checkpoint-5")
    assert [path.name for path in flushed] == ["file"]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert (tmp_path / "checkpoint-5" / "file").read_text() == "x"
    install_checkpoint(tmp_path, "checkpoint-5")  # done by another process
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_kill_while_a_checkpoint_is_removed_leaves_nothing_that_looks_complete(
    tmp_path, monkeypatch
):
    checkpoint = make_checkpoint(tmp_path, 5)
    (checkpoint / "another").write_text("y")

    def remove_half(folder, **_):
        if folder.exists():
            (folder / "file").unlink()

    monkeypatch.setattr(checkpoints.shutil, "rmtree", remove_half)
    remove_checkpoint(checkpoint)
    assert list_checkpoints(tmp_path) == []
    monkeypatch.undo()
    assert list(tmp_path.rglob("another"))  # what is left does not look like a checkpoint


def test_old_checkpoints_are_removed_but_the_best_and_the_newest_kept(tmp_path):
    for step in (5, 10, 15, 20):
        make_checkpoint(tmp_path, step)
    best = str(tmp_path / "checkpoint-5")
    remove_old(tmp_path, keep=3, best=best)
    steps = [path.name for path in list_checkpoints(tmp_path)]
    assert steps == ["checkpoint-5", "checkpoint-15", "checkpoint-20"]
    remove_old(tmp_path, keep=1, best=best)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-20"]


def test_checkpoint_that_a_full_disk_truncates_is_removed_and_the_last_one_kept(
    tmp_path, body, xray_folder, monkeypatch
):
    import errno

    save, calls = averaging.save_file, []

    def save_on_full_disk(*args, **kwargs):
        calls.append(args[1])
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    monkeypatch.setattr(averaging, "save_file", save_on_full_disk)
    run = tmp_path / "run"
    with pytest.raises(OSError, match="No space left"):
        train_tiny("vit-base", body, xray_folder, run, **STATEFUL)
    assert [path.name for path in phase_folder(run, 1).glob("checkpoint-*")] == ["checkpoint-5"]
    assert (phase_folder(run, 1) / "checkpoint-5" / AVERAGE_FILE).exists()
    assert not list((phase_folder(run, 1) / UNFINISHED).iterdir())


def test_nan_stops_the_run_and_keeps_the_checkpoint_before_it(tmp_path, body, xray_folder):
    run = tmp_path / "run"

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 7:
                next(model.parameters()).data.fill_(float("nan"))

    with pytest.raises(UserError, match="diverged"):
        train_with(Poison(), body, xray_folder, run, num_train_epochs=3, logging_steps=1)
    assert [path.name for path in list_checkpoints(phase_folder(run, 1))] == ["checkpoint-5"]
    state = load_file(phase_folder(run, 1) / "checkpoint-5" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())


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


def test_run_is_refused_while_the_lock_of_its_folder_is_held(tmp_path, body, xray_folder):
    with lock_run(tmp_path / "run"), pytest.raises(UserError, match="Another process is training"):
        train_tiny("vit-base", body, xray_folder, tmp_path / "run")
    assert not list_checkpoints(phase_folder(tmp_path / "run", 1))


@pytest.mark.slow
def test_second_run_in_the_same_folder_is_refused(tmp_path, body, xray_folder):
    process = start_long_run(body, xray_folder, tmp_path / "run")
    try:
        with pytest.raises(UserError, match="Another process is training"):
            train_tiny("vit-base", body, xray_folder, tmp_path / "run", resume=True)
    finally:
        process.kill()
        process.communicate()


def test_disk_without_locks_is_reported_and_other_errors_are_raised(tmp_path, monkeypatch, caplog):
    import errno

    import filelock

    def fail_with(number: int) -> None:
        def acquire(self, *args, **kwargs):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(filelock.FileLock, "acquire", acquire)

    fail_with(errno.ENOLCK)
    with lock_run(tmp_path / "run"):
        assert "has no locks" in caplog.text
    fail_with(errno.ENOSPC)
    with pytest.raises(OSError, match="No space"), lock_run(tmp_path / "run"):
        pass


def test_incomplete_weights_on_a_full_disk_are_removed(tmp_path, body, xray_folder, monkeypatch):
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def save_on_full_disk(self, target, **kwargs):
        save(self, target, **kwargs)
        if "checkpoint-10" in str(target):
            raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_on_full_disk)
    with pytest.raises(SafetensorError):
        train_tiny("vit-base", body, xray_folder, tmp_path / "run")
    phase = phase_folder(tmp_path / "run", 1)
    assert [path.name for path in phase.glob("checkpoint-*")] == ["checkpoint-5"]
