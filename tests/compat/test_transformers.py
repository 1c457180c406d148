"""Each part of transformers without a public name is still there, and still called."""

import pytest
from helpers import save_tiny_body, train_tiny

from pneumonia_hf.training.trainer import XrayTrainer

STEPS = ["prepare_batch", "make_train_sampler", "save_checkpoint", "load_checkpoint"]


def test_the_trainer_calls_every_step_that_has_a_name_of_ours(tmp_path, xray_folder, monkeypatch):
    called = []

    def watch(name: str) -> None:
        method = getattr(XrayTrainer, name)

        def record(self, *arguments, **options):
            called.append(name)
            return method(self, *arguments, **options)

        monkeypatch.setattr(XrayTrainer, name, record)

    for name in STEPS:
        watch(name)
    body = save_tiny_body("xray-cnn", tmp_path / "body")
    changes = {"num_train_epochs": 2, "early_stopping_patience": 0}
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        steps = []

        def stop(self, *arguments, **options):
            steps.append(1)
            if len(steps) == 8:  # in the second epoch
                raise KeyboardInterrupt
            return make_loss(self, *arguments, **options)

        make_loss = XrayTrainer.training_step
        patch.setattr(XrayTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_tiny("xray-cnn", body, xray_folder, run, **changes)
    train_tiny("xray-cnn", body, xray_folder, run, resume=True, **changes)
    assert set(STEPS) == set(called)


def test_private_attributes_are_those_that_transformers_reads():
    import inspect

    from transformers import PreTrainedModel, TrainingArguments
    from transformers.integrations import fsdp

    assert "_n_gpu" in inspect.getsource(TrainingArguments.n_gpu.fget)
    assert hasattr(PreTrainedModel, "_no_split_modules")
    import accelerate.utils.dataclasses as accelerate

    assert "_no_split_modules" in inspect.getsource(accelerate) + inspect.getsource(fsdp)
