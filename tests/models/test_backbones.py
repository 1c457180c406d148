import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import TINY_CONFIGS, TINY_SIZES, draw_xray, save_tiny_body
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, TimmWrapperConfig

from pneumonia_hf import Predictor
from pneumonia_hf.cli import parse_recipe
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.gate import describe, middle_layer
from pneumonia_hf.inference.network import Network
from pneumonia_hf.models.backbones import (
    BACKBONES,
    backbone_of,
    fast_precision,
    freeze,
    grow_drop_path,
    head_of,
)
from pneumonia_hf.models.build import NO_WEIGHTS, ModelConfig, _initialise_model, build_model
from pneumonia_hf.models.model_folder import DEFAULT_MODEL


@pytest.fixture
def tiny(tiny_body, backbone_name):
    """Return a function that builds a tiny model of the family with changed settings."""

    def make(**changes):
        torch.manual_seed(0)
        size = TINY_SIZES[backbone_name]
        return build_model(ModelConfig(backbone_name, str(tiny_body), size, **changes))

    return make


def noise(name: str, batch: int = 4) -> torch.Tensor:
    size = TINY_SIZES[name]
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def training_loss(model, pixel_values: torch.Tensor) -> torch.Tensor:
    model.train()
    torch.manual_seed(1)
    labels = torch.arange(len(pixel_values)) % 2
    return model(pixel_values=pixel_values, labels=labels).loss


def test_body_is_pretrained_and_head_is_new(tiny, tiny_body, backbone_name):
    model, processor = tiny()
    backbone = backbone_of(model)
    assert backbone.layer_groups is BACKBONES[backbone_name].layer_groups
    assert backbone.features is BACKBONES[backbone_name].features
    assert model.config.id2label == {0: "NORMAL", 1: "PNEUMONIA"}
    head = model.get_submodule(backbone.head)
    assert head is head_of(model)
    assert head.out_features == 2
    state = model.state_dict()
    if TINY_CONFIGS[backbone_name].model_type in ("timm_wrapper", "xray_cnn"):
        body = AutoModelForImageClassification.from_pretrained(tiny_body).state_dict()
    else:
        body = {
            f"{model.base_model_prefix}.{name}": value
            for name, value in AutoModel.from_pretrained(tiny_body).state_dict().items()
        }
    compared = [name for name in state if not name.startswith(backbone.head)]
    assert len(compared) > 10
    for name in compared:
        assert torch.equal(state[name], body[name]), name
    for value in body.values():
        assert value.shape != head.weight.shape or not torch.equal(value, head.weight)
    assert processor.size == {"height": TINY_SIZES[backbone_name]} | {
        "width": TINY_SIZES[backbone_name]
    }


def test_head_follows_the_seed(tiny_body, backbone_name):
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        config = ModelConfig(backbone_name, str(tiny_body), TINY_SIZES[backbone_name])
        return head_of(build_model(config)[0]).weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_saved_model_is_loaded_bit_for_bit(tiny, tmp_path, backbone_name):
    model, processor = tiny(channels_last=False)  # the other layout rounds differently
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = Predictor.from_pretrained(tmp_path, device="cpu")
    state = again.network.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    images = [draw_xray(seed, ill=bool(seed % 2)) for seed in range(3)]
    before = Predictor(Network(model, processor)).log_odds(images)
    assert np.array_equal(again.log_odds(images), before)
    assert len(set(before)) == 3


def test_the_layer_of_the_gate_is_called_and_its_hook_removed(tiny):
    model, processor = tiny()
    network = Network(model, processor)
    layer = middle_layer(model)
    images = [draw_xray(seed, ill=bool(seed % 2)) for seed in range(3)]
    found = network.features(images, layer)
    assert found.shape[0] == 3 and np.isfinite(found).all() and np.ptp(found, axis=0).max() > 0
    pixel_values = network.pixel_values(images)
    with torch.inference_mode(), describe(model, layer) as seen:
        network.log_odds_of(pixel_values)
    assert np.array_equal(*seen, found)
    with describe(model, layer) as seen:
        pass
    with torch.inference_mode():
        network.log_odds_of(pixel_values[:1])
    assert seen == []
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


@pytest.mark.parametrize("regulariser", ["drop_path", "dropout"])
def test_regularisers_change_training_only(tiny_body, backbone_name, regulariser):
    size = TINY_SIZES[backbone_name]
    if regulariser not in BACKBONES[backbone_name].regularisers:
        with pytest.raises(UserError, match=rf"{backbone_name} has no {regulariser}; these have: "):
            build_model(ModelConfig(backbone_name, str(tiny_body), size, **{regulariser: 0.5}))
        return
    # The tiny EfficientNet has no block that can be skipped.
    full_size = backbone_name.startswith("efficientnet") and regulariser == "drop_path"
    weights = NO_WEIGHTS if full_size else str(tiny_body)
    losses, logits = [], []
    for rate in (0.0, 0.8):
        torch.manual_seed(0)
        config = ModelConfig(backbone_name, weights, size, **{regulariser: rate})
        model, _ = build_model(config)
        with torch.no_grad():
            logits.append(model.eval()(pixel_values=noise(backbone_name)).logits)
            losses.append(training_loss(model, noise(backbone_name)))
    assert torch.equal(*logits)
    assert not torch.isclose(*losses, atol=1e-4)


def test_rates_outside_0_to_1_are_refused():
    for name in ("drop_path", "dropout"):
        with pytest.raises(UserError, match=f"{name} is 1.5; give a share"):
            ModelConfig(**{name: 1.5})


def test_memory_format_is_that_of_the_family_unless_it_is_given(tiny, backbone_name):
    def is_channels_last(**settings) -> set[bool]:
        kernels = [p for p in tiny(**settings)[0].parameters() if p.ndim == 4]
        large = [kernel for kernel in kernels if min(kernel.shape[1:]) > 1]
        return {one.is_contiguous(memory_format=torch.channels_last) for one in large}

    assert is_channels_last(channels_last=True) <= {True}
    assert is_channels_last(channels_last=False) <= {False}
    assert is_channels_last() <= {BACKBONES[backbone_name].channels_last}


def test_channels_last_is_a_flag_that_may_be_left_out():
    flags = ([], ["--backbone", "resnet50"], ["--channels_last"], ["--channels_last", "false"])
    parsed = [parse_recipe([ModelConfig], one)[0].channels_last for one in flags]
    assert parsed == [False, True, True, False]  # the first two by the rule of the family


@pytest.mark.parametrize("name", ["xray-cnn", "efficientnet-lite0", "mobilevit-small"])
def test_random_initialisation_follows_the_seed(name):
    def build(seed: int):
        torch.manual_seed(seed)
        return build_model(ModelConfig(name, NO_WEIGHTS, 64))[0]

    model = build(1)
    for (key, one), same in zip(model.named_parameters(), build(1).parameters(), strict=True):
        assert torch.equal(one, same), key
    other = build(2)
    assert not torch.equal(next(model.parameters()), next(other.parameters()))
    assert not torch.equal(head_of(model).weight, head_of(other).weight)
    # Equal logits for all images would prevent learning.
    model.train()
    logits = model(pixel_values=noise("xray-cnn")).logits
    assert logits.std(dim=0).min() > 1e-3


def test_randomly_initialised_models_have_the_published_sizes():
    """Millions of parameters with a head for two classes, from the papers and timm."""
    from transformers import AutoConfig

    from pneumonia_hf.models.pretrained import timm_config

    millions = {
        "vit-base": 85.8,
        "deit-small": 21.7,
        "dinov2-small": 22.1,
        "swin-tiny": 27.5,
        "convnext-tiny": 27.8,
        "convnextv2-tiny": 27.9,
        "mobilevit-small": 4.9,
        "resnet50": 23.5,
        "efficientnet-b0": 4.0,
        "efficientnet-b3": 10.7,
        "efficientnet-lite0": 3.4,
        "densenet121": 7.0,
        "xray-cnn": 0.8,
    }
    assert millions.keys() == BACKBONES.keys() - {"timm"}
    for name, expected in millions.items():
        backbone = BACKBONES[name]
        if backbone.model_type == "timm_wrapper":
            config = timm_config(backbone.config["architecture"], None, {})
        else:
            config = AutoConfig.for_model(
                backbone.model_type, architectures=[], num_labels=2, **backbone.config
            )
        with torch.device("meta"):
            model = AutoModelForImageClassification.from_config(config)
        assert model.num_parameters() / 1e6 == pytest.approx(expected, abs=0.1), name


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("pickled", [True, False])
def test_timm_weights_load_with_and_without_a_config(tmp_path, monkeypatch, with_config, pickled):
    import timm

    from pneumonia_hf.models import backbones

    torch.manual_seed(0)
    source = timm.create_model("test_efficientnet", num_classes=1000)
    if pickled:
        torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        save_file(source.state_dict(), tmp_path / "model.safetensors")
    if with_config:
        content = {
            "architecture": "test_efficientnet",
            "num_classes": 1000,
            "num_features": source.num_features,
            "pretrained_cfg": {"crop_pct": 0.875, "input_size": [3, 160, 160], "num_classes": 1000},
        }
        (tmp_path / "config.json").write_text(json.dumps(content))
    else:
        tiny = BACKBONES["efficientnet-lite0"].__class__(
            **vars(BACKBONES["efficientnet-lite0"])
            | {"config": {"architecture": "test_efficientnet"}}
        )
        monkeypatch.setitem(backbones.BACKBONES, "efficientnet-lite0", tiny)
    model, processor = build_model(ModelConfig("efficientnet-lite0", str(tmp_path), 64))
    state = model.timm_model.state_dict()
    for name, value in source.state_dict().items():
        if not name.startswith("classifier"):
            assert torch.equal(state[name], value), name
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    from transformers import AutoImageProcessor

    assert "crop_pct" not in (tmp_path / "saved" / "config.json").read_text()
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "saved")) is type(processor)


def test_settings_of_a_timm_architecture_survive_saving(tmp_path):
    body = save_tiny_body("resnet50", tmp_path / "body")
    model, _ = build_model(ModelConfig("resnet50", str(body), 64, drop_path=0.25))
    model.save_pretrained(tmp_path / "saved")
    again, _ = build_model(ModelConfig("resnet50", str(tmp_path / "saved"), 64))
    expected = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "drop_path_rate": 0.25}
    assert again.config.model_args == expected
    assert backbone_of(again) is BACKBONES["resnet50"]


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_byobnet", "test_maxvit"])
def test_any_model_of_timm_can_be_a_backbone(tmp_path, architecture):
    settings = {"img_size": 64} if architecture in ("test_vit", "test_maxvit") else None
    config = TimmWrapperConfig(architecture=architecture, model_args=settings, num_labels=7)
    source = AutoModelForImageClassification.from_config(config)
    source.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    statistics = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    (tmp_path / "config.json").write_text(json.dumps(saved | {"pretrained_cfg": statistics}))
    model, processor = build_model(ModelConfig("timm", str(tmp_path), 64))
    assert (processor.image_mean, processor.image_std) == tuple(statistics.values())
    groups = [*backbone_of(model).layer_groups(model), head_of(model)]
    found = [id(parameter) for group in groups for parameter in group.parameters()]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert len(groups) > 3
    # A model that was trained here has its statistics in its processor.
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    _, again = build_model(ModelConfig("timm", str(tmp_path / "trained"), 64))
    assert (again.image_mean, again.image_std) == tuple(statistics.values())


def test_default_model_belongs_to_its_architectures_entry():
    predictor = Predictor.from_pretrained(DEFAULT_MODEL, device="cpu")
    assert backbone_of(predictor.network.model) is BACKBONES["efficientnet-lite0"]


def test_distilled_deit_weights_load_into_a_model_with_one_head(tmp_path):
    body = save_tiny_body("deit-small", tmp_path)
    architectures = json.loads((body / "config.json").read_text())["architectures"]
    assert architectures == ["DeiTForImageClassificationWithTeacher"]
    model, _ = build_model(ModelConfig("deit-small", str(body)))
    assert type(model).__name__ == "DeiTForImageClassification"
    assert training_loss(model, noise("deit-small")).requires_grad


def test_weights_in_a_pickle_file_load(tmp_path):
    body = save_tiny_body("convnext-tiny", tmp_path)
    state = load_file(body / "model.safetensors")
    torch.save(state, body / "pytorch_model.bin")
    (body / "model.safetensors").unlink()
    model, _ = build_model(ModelConfig("convnext-tiny", str(body), 64))
    assert torch.equal(
        model.convnext.embeddings.patch_embeddings.weight,
        state["embeddings.patch_embeddings.weight"],
    )


@pytest.mark.slow
def test_xray_cnn_folder_loads_without_this_package(tmp_path):
    torch.manual_seed(0)
    model, processor = build_model(
        ModelConfig("xray-cnn", str(save_tiny_body("xray-cnn", tmp_path / "body")), 64)
    )
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    image = draw_xray(2, ill=True)
    image.save(tmp_path / "scan.png")
    program = """
import json, sys
sys.modules["pneumonia_hf"] = None  # any import of it fails
from transformers import pipeline
found = pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)(sys.argv[2])
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(folder), str(tmp_path / "scan.png")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scores = {one["label"]: one["score"] for one in json.loads(done.stdout.splitlines()[-1])}
    expected = Predictor(Network(model, processor)).probabilities([image])[0]
    assert scores["PNEUMONIA"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_predictor_runs_no_code_of_a_model_folder(tmp_path):
    """In a new process that imports only the predictor."""
    model, processor = build_model(
        ModelConfig("xray-cnn", str(save_tiny_body("xray-cnn", tmp_path / "body")), 64)
    )
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "xray_cnn.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + (folder / "xray_cnn.py").read_text()
    )
    program = """
import sys
from pneumonia_hf import Predictor
print(type(Predictor.from_pretrained(sys.argv[1]).network.model).__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "pneumonia_hf.models.xray_cnn"
    build_model(ModelConfig("xray-cnn", str(folder), 64))  # nor does training
    assert not (tmp_path / "ran").exists()


def test_user_errors_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"choose from \['convnext-tiny'"):
        build_model(ModelConfig("resnet-18"))
    body = save_tiny_body("vit-base", tmp_path / "vit")
    with pytest.raises(UserError, match="of type 'vit'"):
        build_model(ModelConfig("convnextv2-tiny", str(body)))
    with pytest.raises(UserError, match="images of 32 pixels only"):
        build_model(ModelConfig("vit-base", str(body), 64))
    with pytest.raises(UserError, match="--weights"):
        build_model(ModelConfig("vit-base", str(tmp_path / "nothing")))
    with pytest.raises(UserError, match="--weights timm/NAME"):
        build_model(ModelConfig("timm"))
    (tmp_path / "empty").mkdir()
    for name in ("vit-base", "efficientnet-lite0", "timm", "xray-cnn"):
        with pytest.raises(UserError, match="No usable weights"):
            build_model(ModelConfig(name, str(tmp_path / "empty")))
    pickled = io.BytesIO()
    torch.save({"x": torch.zeros(99)}, pickled)
    (body / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.safetensors"):
        for content in (b"", b"rubbish", pickled.getvalue()[:500]):
            for backbone, folder in (
                ("vit-base", body),
                ("efficientnet-lite0", tmp_path / "empty"),
            ):
                (folder / name).write_bytes(content)
                with pytest.raises(UserError, match="No usable weights"):
                    build_model(ModelConfig(backbone, str(folder)))


def test_timm_weights_of_another_family_are_refused(tmp_path):
    body = save_tiny_body("densenet121", tmp_path)
    with pytest.raises(UserError, match=r"holds a densenet121, .* use --backbone timm"):
        build_model(ModelConfig("resnet50", str(body), 64))
    saved = json.loads((body / "config.json").read_text())
    (body / "config.json").write_text(json.dumps(saved | {"architecture": "densenet_of_tomorrow"}))
    with pytest.raises(UserError, match=r"holds a densenet_of_tomorrow, .* use --backbone timm"):
        build_model(ModelConfig("densenet121", str(body), 64))


def test_unsupported_image_size_is_refused(tmp_path):
    for name in ("swin-tiny", "xray-cnn"):
        body = save_tiny_body(name, tmp_path / name)
        too_small = {"swin-tiny": 32, "xray-cnn": 2}[name]
        with pytest.raises(UserError, match=f"{name} cannot take images of {too_small} pixels"):
            build_model(ModelConfig(name, str(body), too_small))


def test_unreachable_hub_is_one_sentence():
    with pytest.raises(UserError, match=r"cannot be reached.*--weights a local folder"):
        build_model(ModelConfig("vit-base"))


def test_incomplete_weights_are_refused(tmp_path):
    body = save_tiny_body("vit-base", tmp_path / "vit")
    state = load_file(body / "model.safetensors")
    kept = dict(list(state.items())[: len(state) // 2])
    save_file(kept, body / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack .* tensors"):
        build_model(ModelConfig("vit-base", str(body)))


def test_loading_shows_no_progress_bar_and_restores_the_setting(tmp_path, capfd):
    from transformers.utils import logging

    body = save_tiny_body("vit-base", tmp_path / "body")
    model, processor = build_model(ModelConfig("vit-base", str(body)))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    was_enabled = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        capfd.readouterr()
        build_model(ModelConfig("vit-base", str(body)))
        Predictor.from_pretrained(tmp_path / "model", device="cpu")
        assert "Loading weights" not in capfd.readouterr().err
        assert logging.is_progress_bar_enabled()
    finally:
        if not was_enabled:
            logging.disable_progress_bar()


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
