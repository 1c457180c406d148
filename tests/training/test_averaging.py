import pytest
import torch
from helpers import (
    save_tiny_body,
    train_tiny,
)
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, TrainerCallback

from pneumonia_hf.training.averaging import (
    AVERAGE_FILE,
    load_average,
    load_best,
    make_average,
    save_average,
)
from pneumonia_hf.training.checkpoints import (
    list_checkpoints,
    phase_folder,
    read_outcome,
)


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save_tiny_body("convnextv2-tiny", tmp_path_factory.mktemp("body"))


@pytest.mark.parametrize("channels_last", [False, True])
def test_averaged_weights_are_evaluated_and_saved(tmp_path, xray_folder, body, channels_last):
    folder = train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run",
                        num_train_epochs=2, ema_decay=0.9, learning_rate=1e-2,
                        channels_last=channels_last)  # fmt: skip
    outcome = read_outcome(phase_folder(folder, 1))
    checkpoint = phase_folder(folder, 1) / outcome.checkpoint
    average = load_file(checkpoint / AVERAGE_FILE)
    raw = AutoModelForImageClassification.from_pretrained(checkpoint).state_dict()
    saved = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    body_names = [name for name in average if not name.startswith("classifier")]
    assert all(torch.equal(saved[name], average[name]) for name in body_names)
    assert not all(torch.equal(saved[name], raw[name]) for name in body_names)
    loaded = load_best(checkpoint).state_dict()
    assert all(torch.equal(loaded[name], average[name]) for name in average)


def test_average_that_is_loaded_goes_on_at_its_step(tmp_path):
    model = torch.nn.Linear(2, 1)
    average = make_average(model, 0.0)
    for _ in range(3):
        average.update_parameters(model)
    save_average(average, tmp_path)
    assert int(load_average(model, 0.0, tmp_path).n_averaged) == 3


@pytest.mark.parametrize("changes", [{"ema_decay": 0.3}, {"average_from": 0.5}])
def test_average_follows_its_formula(tmp_path, xray_folder, body, changes):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append(model.classifier.weight.detach().clone())

    folder = train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run",
                        callbacks=[Look()], num_train_epochs=1, **changes)  # fmt: skip
    average = seen[0]
    for step, weight in enumerate(seen[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    if "average_from" in changes:
        assert len(seen) >= 4
        average = torch.stack(seen[len(seen) // 2 :]).mean(dim=0)
    saved = load_file(list_checkpoints(phase_folder(folder, 1))[-1] / AVERAGE_FILE)
    torch.testing.assert_close(saved["classifier.weight"], average)
