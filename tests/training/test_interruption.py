"""Processes that are asked to end, or of which a part is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, save_tiny_body, train_tiny
from transformers import TrainerCallback

from pneumonia_hf.errors import Stopped, UserError
from pneumonia_hf.training.checkpoints import (
    last_checkpoint,
    list_checkpoints,
    phase_folder,
)
from pneumonia_hf.training.interruption import catch_sigterm
from pneumonia_hf.training.run_state import lock_run


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save_tiny_body("vit-base", tmp_path_factory.mktemp("body"))


PYTHON = [sys.executable]
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]


def start_long_run(body, data, folder, *more, command=PYTHON) -> subprocess.Popen:
    """Start a run of minutes in a process of its own, and wait until it has a checkpoint."""
    flags = ["--backbone", "vit-base", "--weights", body, "--image_size", 32, "--data_dir", data]
    flags += ["--output_dir", folder, "--num_train_epochs", 4000, "--precision", "fp32"]
    flags += ["--metric_for_best_model", "auroc"]  # to score copies too takes longer
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


def test_sigterm_ends_a_run_at_once_or_where_it_may_wait_is_kept_for_the_next_step():
    with pytest.raises(Stopped, match="saved"), catch_sigterm() as stop:
        with stop.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.has_come  # and the training goes on to its checkpoint
        assert not stop.may_wait
        raise Stopped("saved")
    dead = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")  # of the same signal
    with (
        pytest.raises(Stopped, match="Stopped by SIGTERM"),
        catch_sigterm() as stop,
        stop.waiting(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        raise dead
    with pytest.raises(RuntimeError, match="exited"), catch_sigterm() as stop:
        raise dead
    reached = []
    with pytest.raises(Stopped, match="Stopped by SIGTERM"), catch_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("the next line")
    assert not reached


class Terminate(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_makes_a_checkpoint_at_the_next_step_and_not_at_the_end_of_the_epoch(
    tmp_path, body, xray_folder
):
    changes = {"callbacks": [Terminate()], "per_device_train_batch_size": 4}
    with pytest.raises(Stopped, match=r"with a checkpoint of step [23];"):
        train_tiny("vit-base", body, xray_folder, tmp_path / "run", **changes)
    assert last_checkpoint(phase_folder(tmp_path / "run", 1)) is not None


@pytest.mark.slow
def test_process_refuses_another_in_its_folder_and_saves_a_checkpoint_after_sigterm(
    tmp_path, body, xray_folder
):
    process = start_long_run(body, xray_folder, tmp_path / "run")
    try:
        with pytest.raises(UserError, match="Another process is training"):
            train_tiny("vit-base", body, xray_folder, tmp_path / "run", resume=True)
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


def test_run_is_refused_while_the_lock_of_its_folder_is_held(tmp_path, body, xray_folder):
    with lock_run(tmp_path / "run"), pytest.raises(UserError, match="Another process is training"):
        train_tiny("vit-base", body, xray_folder, tmp_path / "run")
    assert not list_checkpoints(phase_folder(tmp_path / "run", 1))
