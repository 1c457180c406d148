import pytest
import torch
from helpers import TINY_SIZES, save_tiny_body

from pneumonia_hf.models.build import ModelConfig, build_model
from pneumonia_hf.training import probe
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.phases import Phase
from pneumonia_hf.training.probe import Speed, choose_speed, name_way

STAGE = Phase(None, 1, 1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    body = save_tiny_body("convnextv2-tiny", tmp_path_factory.mktemp("body"))
    return build_model(ModelConfig("convnextv2-tiny", str(body), TINY_SIZES["convnextv2-tiny"]))[0]


def arguments(**changes) -> XrayTrainingArguments:
    settings = {"per_device_train_batch_size": 2, "cpu_threads": 1}
    return XrayTrainingArguments(output_dir="unused", **settings | changes)


def pretend(monkeypatch, seconds: dict[str, float]) -> list[str]:
    """Let each way take so long; return the list of what is tried."""
    tried = []

    def take(model, pixels, labels, *way):
        tried.append(name_way(*way))
        return seconds[tried[-1]]

    monkeypatch.setattr(probe, "_time_step", take)
    monkeypatch.setattr(probe, "fast_precision", lambda device: "bf16")
    return tried


SECONDS = {"fp32": 1.0, "fp32 channels_last": 0.7, "bf16": 0.5, "bf16 channels_last": 0.4}


def test_quickest_way_is_taken_and_told(model, tmp_path, monkeypatch):
    pretend(monkeypatch, SECONDS)
    speed = choose_speed(model, 64, None, STAGE, arguments(), tmp_path)
    assert (speed.precision, speed.channels_last) == ("bf16", True)
    expected = {way: 2 / one for way, one in SECONDS.items()}
    assert speed.images_per_second == pytest.approx(expected, abs=0.01)


def test_plain_way_stays_where_no_other_is_a_tenth_quicker(model, tmp_path, monkeypatch):
    pretend(monkeypatch, dict.fromkeys(SECONDS, 0.95) | {"fp32": 1.0})
    speed = choose_speed(model, 64, None, STAGE, arguments(), tmp_path)
    assert (speed.precision, speed.channels_last) == ("fp32", False)


def test_second_run_computes_as_the_first_did(model, tmp_path, monkeypatch):
    pretend(monkeypatch, SECONDS)
    first = choose_speed(model, 64, None, STAGE, arguments(), tmp_path)
    tried = pretend(monkeypatch, {"bf16": 9.0, "bf16 channels_last": 9.0} | {"fp32": 0.1})
    assert choose_speed(model, 64, None, STAGE, arguments(), tmp_path) == first
    assert tried == []


def test_what_is_told_is_not_measured(model, tmp_path, monkeypatch):
    tried = pretend(monkeypatch, SECONDS)
    summary = choose_speed(model, 64, True, STAGE, arguments(precision="bf16"), tmp_path)
    assert summary == Speed("bf16", True, {}) and tried == []
    choose_speed(model, 64, None, STAGE, arguments(precision="fp32"), tmp_path)
    assert set(tried) == {"fp32", "fp32 channels_last"}
    tried.clear()
    choose_speed(model, 64, False, STAGE, arguments(), tmp_path)
    assert set(tried) == {"fp32", "bf16"}


def test_real_measurement_leaves_the_model_and_the_lot_as_they_were(model, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    speed = choose_speed(model, 64, None, STAGE, arguments(), tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert all(rate > 0 for rate in speed.images_per_second.values())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
