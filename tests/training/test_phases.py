import json

import pytest
import torch
from helpers import TINY_SIZES, save_tiny_body, train_tiny
from transformers import AutoModelForImageClassification

from pneumonia_hf.errors import UserError
from pneumonia_hf.models.backbones import backbone_of, head_of
from pneumonia_hf.models.build import ModelConfig, build_model
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.checkpoints import list_checkpoints, phase_folder
from pneumonia_hf.training.phases import Phase, rate_of_parameters


def read(phases, trainable_layer_groups=None, **changes):
    arguments = XrayTrainingArguments(output_dir="unused", phases=phases, **changes)
    return arguments.read_phases(trainable_layer_groups)


def test_phases_are_read_in_order():
    assert read(["head:1:1e-3", "last2:2.5:1e-4", "all:5:3e-5"]) == [
        Phase(0, 1.0, 1e-3),
        Phase(2, 2.5, 1e-4),
        Phase(None, 5.0, 3e-5),
    ]


def test_linear_probe_and_full_fine_tuning_are_the_two_ends():
    assert read(None, 0, num_train_epochs=3) == [Phase(0, 3, 1e-4)]
    assert read(None, None, learning_rate=1e-5) == [Phase(None, 10, 1e-5)]
    assert [phase.name for phase in read(["head:1:1", "last3:1:1", "all:1:1"])] == [
        "head",
        "last3",
        "all",
    ]


@pytest.mark.parametrize(
    "phase",
    ["body:1:1e-3", "head:1", "head:0:1e-3", "head:1:-1", "last0:1:1e-3", "last:1:1", "all:x:1",
     "all:1:nan", "all:inf:1", "1:1:1", 61],
)  # fmt: skip
def test_malformed_phase_is_reported_in_one_sentence(phase):
    with pytest.raises(UserError, match=r"is not PART:EPOCHS:RATE"):
        read([phase])


def test_phases_and_layer_groups_exclude_each_other():
    with pytest.raises(UserError, match="leave one out"):
        read(["all:1:1e-3"], trainable_layer_groups=2)


def test_rates_fall_from_the_head_to_the_input(tiny_body, backbone_name):
    model, _ = build_model(ModelConfig(backbone_name, str(tiny_body), TINY_SIZES[backbone_name]))
    rates = rate_of_parameters(model, 0.5)
    assert rates.keys() == dict(model.named_parameters()).keys()
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = backbone_of(model).layer_groups(model)
    assert {rates[named[id(one)]] for one in head_of(model).parameters()} == {1.0}
    for depth, group in enumerate(reversed(groups), start=1):
        assert {rates[named[id(one)]] for one in group.parameters()} <= {0.5**depth}
    assert len(set(rates.values())) > 2


def test_optimizer_gets_each_layers_rate_and_no_decay_for_biases(tmp_path, xray_folder):
    from transformers import TrainerCallback

    body = save_tiny_body("vit-base", tmp_path / "body")
    seen = {}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, model=None, **kwargs):
            named = {id(parameter): name for name, parameter in model.named_parameters()}
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    seen[named[id(parameter)]] = group["initial_lr"], group["weight_decay"]
            control.should_training_stop = True

    train_tiny("vit-base", body, xray_folder, tmp_path / "run", callbacks=[Look()],
               layer_decay=0.5, learning_rate=1e-3, weight_decay=0.1)  # fmt: skip
    assert seen["classifier.weight"] == (1e-3, 0.1)
    assert seen["classifier.bias"] == (1e-3, 0.0)
    assert seen["vit.layers.2.mlp.fc1.weight"][0] == pytest.approx(1e-3 * 0.5)
    assert seen["vit.layernorm.weight"][0] == pytest.approx(1e-3 * 0.5)  # in no layer group
    assert seen["vit.layers.0.mlp.fc1.weight"][0] == pytest.approx(1e-3 * 0.5**3)
    assert seen["vit.embeddings.cls_token"][0] == pytest.approx(1e-3 * 0.5**4)


@pytest.mark.slow
def test_each_phase_trains_its_part_of_the_network_from_the_best_weights_of_the_one_before(
    tmp_path, xray_folder, capsys
):
    body = save_tiny_body("efficientnet-lite0", tmp_path / "body")
    start = AutoModelForImageClassification.from_pretrained(body).state_dict()
    folder = train_tiny(
        "efficientnet-lite0", body, xray_folder, tmp_path / "run", save_total_limit=None,
        phases=["head:2:1e-2", "last1:1:1e-3", "all:1:1e-3"],
    )  # fmt: skip
    run = json.loads((folder / "run.json").read_text())["training"]
    assert [phase["part"] for phase in run["stages"]] == ["head", "last1", "all"]
    assert [phase["steps"] for phase in run["stages"]] == [10, 5, 5]
    assert run["steps_run"] == 20
    shares = [phase["share_of_weights"] for phase in run["stages"]]
    assert 0 < shares[0] < shares[1] < shares[2] == 1
    assert f"{shares[1]:.2%} of the network's" in capsys.readouterr().out

    def weights_after(number: int) -> dict[str, torch.Tensor]:
        last = list_checkpoints(phase_folder(folder, number))[-1]
        return AutoModelForImageClassification.from_pretrained(last).state_dict()

    def changed(before: dict, after: dict) -> set[str]:
        return {name for name in before if not torch.equal(before[name], after[name])}

    head = {name for name in start if name.startswith("timm_model.classifier")}
    one, two, three = (weights_after(number) for number in (1, 2, 3))
    # Running statistics of frozen layers do not change either.
    assert changed(start, one) == head
    best = phase_folder(folder, 1) / run["stages"][0]["checkpoint"]
    best_of_one = AutoModelForImageClassification.from_pretrained(best).state_dict()
    body_changed = changed(best_of_one, two) - head
    assert body_changed and all(
        name.startswith(("timm_model.conv_head", "timm_model.bn2")) for name in body_changed
    )
    assert any(name.startswith("timm_model.conv_stem") for name in changed(two, three))
