import io

import numpy as np
import pytest
import torch
from helpers import (
    TINY_CONFIGS,
    TINY_SIZES,
    draw_xray,
    noise,
    save_tiny_body,
    training_loss,
)
from transformers import AutoModel, AutoModelForImageClassification

from pneumonia_hf import Predictor
from pneumonia_hf.cli import parse_recipe
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.network import Network
from pneumonia_hf.models.backbones import (
    BACKBONES,
    backbone_of,
    head_of,
)
from pneumonia_hf.models.build import NO_WEIGHTS, ModelConfig, build_model


def test_body_is_pretrained_and_head_is_new(tiny, tiny_body, backbone_name):
    model, processor = tiny()
    backbone = backbone_of(model)
    assert backbone.layer_groups is BACKBONES[backbone_name].layer_groups
    assert backbone.averaged_layer is BACKBONES[backbone_name].averaged_layer
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


def test_unsupported_image_size_is_refused(tmp_path):
    for name in ("swin-tiny", "xray-cnn"):
        body = save_tiny_body(name, tmp_path / name)
        too_small = {"swin-tiny": 32, "xray-cnn": 2}[name]
        with pytest.raises(UserError, match=f"{name} cannot take images of {too_small} pixels"):
            build_model(ModelConfig(name, str(body), too_small))


def test_unreachable_hub_is_one_sentence():
    with pytest.raises(UserError, match=r"cannot be reached.*--weights a local folder"):
        build_model(ModelConfig("vit-base"))
