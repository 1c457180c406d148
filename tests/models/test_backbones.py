import numpy as np
import pytest
import torch
from helpers import (
    draw_xray,
    noise,
    save_tiny_body,
    training_loss,
)

from pneumonia_hf import Predictor
from pneumonia_hf.inference.gate import compute_features, middle_layer
from pneumonia_hf.inference.network import Network
from pneumonia_hf.models.backbones import (
    BACKBONES,
    backbone_of,
    fast_precision,
    freeze,
    grow_drop_path,
    head_of,
)
from pneumonia_hf.models.build import _initialise_model
from pneumonia_hf.models.model_folder import DEFAULT_MODEL


def test_the_layer_of_the_gate_is_called_and_its_hook_removed(tiny):
    model, processor = tiny()
    network = Network(model, processor)
    layer = middle_layer(model)
    images = [draw_xray(seed, ill=bool(seed % 2)) for seed in range(3)]
    found = network.features(images, layer)
    assert found.shape[0] == 3 and np.isfinite(found).all() and np.ptp(found, axis=0).max() > 0
    pixel_values = network.pixel_values(images)
    with torch.inference_mode():
        seen = compute_features(model, layer, pixel_values)
        assert network.log_odds_of(pixel_values).isfinite().all()  # nothing stops it any more
    # Convolutions compute in another memory format.
    assert found == pytest.approx(seen, rel=1e-3, abs=1e-4)
    reached = []
    head_of(model).register_forward_hook(lambda *_: reached.append("head"))
    network.features(images, layer)
    assert not reached  # the layers above are not computed


def test_each_parameter_is_in_one_layer_group_or_the_head(tiny):
    model, _ = tiny()
    groups = [*backbone_of(model).layer_groups(model), head_of(model)]
    found = [id(parameter) for group in groups for parameter in group.parameters()]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in model.parameters()}
    assert len(groups) > 3
    assert all(list(group.parameters()) for group in groups)


def test_no_layer_group_is_a_normalisation_layer_alone(backbone_name, tiny):
    """Also in the published size, where the last norm is 0.003% of ViT-B."""
    backbone = BACKBONES[backbone_name]
    models = [tiny()[0]]
    if backbone_name != "timm":
        with torch.device("meta"):
            models.append(_initialise_model(backbone, {}))
    for model in models:
        for group in backbone_of(model).layer_groups(model):
            own = [one for one in group.modules() if list(one.parameters(recurse=False))]
            owners = {type(one).__name__ for one in own}
            assert any("Norm" not in name for name in owners), (backbone_name, owners)


def test_drop_path_grows_with_depth_in_every_family_that_has_it(backbone_name):
    """From 0 in the first block to the requested rate in the last (Huang et al. 2016)."""
    backbone = BACKBONES[backbone_name]
    if "drop_path" not in backbone.regularisers or backbone_name == "timm":
        return
    model = _initialise_model(backbone, {backbone.regularisers["drop_path"]: 0.3})
    grow_drop_path(model)
    rates = [
        float(module.drop_prob)
        for module in model.modules()
        if type(module).__name__.endswith("DropPath") and module.drop_prob is not None
    ]
    assert rates == sorted(rates) and len(set(rates)) > 3
    assert 0.2 < rates[-1] < 0.30001


def test_drop_path_of_dinov2_still_grows_in_a_later_phase_of_training(tmp_path, xray_folder):
    from helpers import train_tiny
    from transformers import TrainerCallback

    seen = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            layers = model.dinov2.encoder.layer
            seen.append([getattr(layer.drop_path, "drop_prob", 0.0) for layer in layers])

    body = save_tiny_body("dinov2-small", tmp_path / "body")
    phases = ["head:1:1e-3", "all:1:1e-3"]
    changes = {"phases": phases, "callbacks": (Look(),), "drop_path": 0.4}
    train_tiny("dinov2-small", body, xray_folder, tmp_path / "run", **changes)
    assert seen == [pytest.approx([0.0, 0.2, 0.4])] * 2


def test_frozen_layer_groups_stay_and_the_others_change(tiny, backbone_name):
    model, _ = tiny(trainable_layer_groups=1)
    *frozen, last = backbone_of(model).layer_groups(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    names = {id(value): name for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)
    training_loss(model, noise(backbone_name)).backward()
    optimizer.step()
    for group in frozen:
        for value in group.parameters():
            assert torch.equal(value, before[names[id(value)]]), names[id(value)]
    for group in (last, head_of(model)):
        changed = [not torch.equal(v, before[names[id(v)]]) for v in group.parameters()]
        assert any(changed)
    freeze(model, 0)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for p in head_of(model).parameters()
    }
    freeze(model, None)
    assert all(parameter.requires_grad for parameter in model.parameters())


# transformers' ConvNeXts do not support it, and XrayCnn is too small to need it.
WITHOUT_CHECKPOINTING = {"convnext-tiny", "convnextv2-tiny", "xray-cnn"}


def test_gradient_checkpointing_changes_memory_only(tiny, backbone_name):
    plain, _ = tiny()
    assert plain.supports_gradient_checkpointing == (backbone_name not in WITHOUT_CHECKPOINTING)
    if backbone_name in WITHOUT_CHECKPOINTING:
        return
    saving, _ = tiny()
    saving.activation_checkpointing_enable()
    kept = {}
    losses = {}
    for name, model in (("plain", plain), ("saving", saving)):
        kept[name] = 0

        def count(tensor: torch.Tensor, name: str = name) -> torch.Tensor:
            kept[name] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            losses[name] = training_loss(model, noise(backbone_name))
        losses[name].backward()
    assert torch.equal(losses["plain"], losses["saving"])
    assert kept["saving"] < kept["plain"]  # checkpointing is active
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


def test_default_model_belongs_to_its_architectures_entry():
    predictor = Predictor.from_pretrained(DEFAULT_MODEL, device="cpu")
    assert backbone_of(predictor.network.model) is BACKBONES["efficientnet-lite0"]


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_cpu_computes_bf16_where_its_hardware_does(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert fast_precision("cpu") == expected
