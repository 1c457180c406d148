from types import SimpleNamespace

import pytest
import torch
from helpers import save_tiny_body, train_tiny
from safetensors.torch import load_file
from transformers import TrainerCallback

from pneumonia_hf.errors import UserError
from pneumonia_hf.training import averaging, checkpoints
from pneumonia_hf.training.averaging import AVERAGE_FILE
from pneumonia_hf.training.checkpoints import (
    UNFINISHED,
    choose_outcome,
    install_checkpoint,
    is_exhausted,
    last_checkpoint,
    list_checkpoints,
    phase_folder,
    remove_checkpoint,
    remove_old,
)
from pneumonia_hf.training.phases import Outcome


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save_tiny_body("vit-base", tmp_path_factory.mktemp("body"))


def make_checkpoint(folder, step: int):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "file").write_text("x")
    return checkpoint


@pytest.mark.parametrize(("sign", "metric"), [(1, "auroc"), (-1, "loss")])
def test_lower_is_better_where_the_metric_says_so(sign, metric):
    arguments = SimpleNamespace(
        metric_for_best_model=metric, greater_is_better=sign > 0, early_stopping_patience=2,
        load_best_model_at_end=True,
    )  # fmt: skip
    values = [sign * value for value in (0.1, 0.4, 0.2, 0.3)]
    log = [{"loss": 1.0}, *({f"eval_{metric}": value} for value in values)]
    assert is_exhausted(log, arguments) and not is_exhausted(log[:-1], arguments)
    outcomes = [Outcome("checkpoint-1", value, 1, 1, None, []) for value in values]
    assert choose_outcome(outcomes, arguments) == 1


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


def test_copies_beside_the_checkpoints_are_neither_resumed_nor_removed(tmp_path):
    for step in (3, 12, "3-copy", "20.bak"):
        make_checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path).name == "checkpoint-12"
    remove_old(tmp_path, 1, str(tmp_path / "checkpoint-3"))
    assert len(list(tmp_path.iterdir())) == 4


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
        train_tiny("vit-base", body, xray_folder, run, num_train_epochs=4, ema_decay=0.9)
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
        train_tiny("vit-base", body, xray_folder, run, callbacks=[Poison()],
                   logging_steps=1)  # fmt: skip
    assert [path.name for path in list_checkpoints(phase_folder(run, 1))] == ["checkpoint-5"]
    state = load_file(phase_folder(run, 1) / "checkpoint-5" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())


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
