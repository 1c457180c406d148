import json

import pytest
import torch
from conftest import TINY_SIZES, save_tiny_body
from safetensors.torch import save_file
from transformers import AutoModel

from pneumonia_hf.backbones import BACKBONES, ModelConfig, backbone_of, build_model
from pneumonia_hf.errors import UserError


def test_body_is_pretrained_and_head_is_new(tiny_body, backbone_name):
    model, processor = build_model(
        ModelConfig(backbone_name, str(tiny_body), TINY_SIZES[backbone_name])
    )
    assert backbone_of(model) is BACKBONES[backbone_name]
    assert model.config.id2label == {0: "NORMAL", 1: "PNEUMONIA"}
    head = model.get_submodule(BACKBONES[backbone_name].head)
    assert head.out_features == 2
    if backbone_name != "efficientnet-lite0":
        body = AutoModel.from_pretrained(tiny_body)
        prefix = model.base_model_prefix
        state = model.state_dict()
        for name, value in body.state_dict().items():
            if f"{prefix}.{name}" in state:
                assert torch.equal(state[f"{prefix}.{name}"], value)
    assert processor.size == {"height": TINY_SIZES[backbone_name]} | {
        "width": TINY_SIZES[backbone_name]
    }


def test_head_follows_the_seed(tiny_body, backbone_name):
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        config = ModelConfig(backbone_name, str(tiny_body), TINY_SIZES[backbone_name])
        return build_model(config)[0].get_submodule(BACKBONES[backbone_name].head).weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


@pytest.mark.parametrize("with_config", [True, False])
def test_timm_weights_load_as_the_hub_or_timm_itself_has_them(tmp_path, monkeypatch, with_config):
    import timm

    from pneumonia_hf import backbones

    torch.manual_seed(0)
    source = timm.create_model("test_efficientnet", num_classes=1000)
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
            **vars(BACKBONES["efficientnet-lite0"]) | {"architecture": "test_efficientnet"}
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


def test_mistakes_are_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"choose from \['convnextv2-tiny'"):
        build_model(ModelConfig("resnet-18"))
    body = save_tiny_body("vit-base", tmp_path / "vit")
    with pytest.raises(UserError, match="of type 'vit'"):
        build_model(ModelConfig("convnextv2-tiny", str(body)))
    with pytest.raises(UserError, match="pictures of 32 pixels only"):
        build_model(ModelConfig("vit-base", str(body), 64))
    with pytest.raises(UserError, match="--weights"):
        build_model(ModelConfig("vit-base", str(tmp_path / "nothing")))
    (tmp_path / "empty").mkdir()
    for name in ("vit-base", "efficientnet-lite0"):
        with pytest.raises(UserError, match="No usable weights"):
            build_model(ModelConfig(name, str(tmp_path / "empty")))
    (body / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="No usable weights"):
        build_model(ModelConfig("vit-base", str(body)))


def test_unreachable_hub_is_told_in_one_sentence():
    with pytest.raises(UserError, match=r"cannot be reached.*--weights a local folder"):
        build_model(ModelConfig("vit-base"))


def test_half_a_body_is_refused(tmp_path):
    from safetensors.torch import load_file

    body = save_tiny_body("vit-base", tmp_path / "vit")
    state = load_file(body / "model.safetensors")
    kept = dict(list(state.items())[: len(state) // 2])
    save_file(kept, body / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack .* tensors"):
        build_model(ModelConfig("vit-base", str(body)))
