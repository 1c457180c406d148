import json

import pytest
import torch
from helpers import (
    noise,
    save_tiny_body,
    training_loss,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, TimmWrapperConfig

from pneumonia_hf import Predictor
from pneumonia_hf.errors import UserError
from pneumonia_hf.models.backbones import (
    BACKBONES,
    backbone_of,
    head_of,
)
from pneumonia_hf.models.build import ModelConfig, build_model


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


def test_timm_weights_of_another_family_are_refused(tmp_path):
    body = save_tiny_body("densenet121", tmp_path)
    with pytest.raises(UserError, match=r"holds a densenet121, .* use --backbone timm"):
        build_model(ModelConfig("resnet50", str(body), 64))
    saved = json.loads((body / "config.json").read_text())
    (body / "config.json").write_text(json.dumps(saved | {"architecture": "densenet_of_tomorrow"}))
    with pytest.raises(UserError, match=r"holds a densenet_of_tomorrow, .* use --backbone timm"):
        build_model(ModelConfig("densenet121", str(body), 64))


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
