from copy import deepcopy

import pytest
import torch
from helpers import TINY_CONFIGS, TINY_SIZES, noise, settle_batch_norms
from transformers import AutoModelForImageClassification, TimmWrapperConfig

from pneumonia_hf.errors import ModelError
from pneumonia_hf.models.activation_map import (
    class_activation_map,
    collect_features,
    supports_activation_map,
    to_activation_map,
)
from pneumonia_hf.models.backbones import head_of

WITHOUT = {"vit-base", "deit-small", "timm"}  # the tiny model of `timm` is a ConvNeXt
EXACT = sorted(TINY_CONFIGS.keys() - WITHOUT)
OTHER_TIMM = {
    "resnet18": True,
    "mobilenetv2_035": True,
    "mobilenetv3_small_050": False,  # a convolution with an activation after the mean
    "resnet18d.catavgmax": False,
    "test_vit": False,
    "repghostnet_050": False,
}


def make_model(config, classes=3):
    torch.manual_seed(0)
    config = deepcopy(config)
    config.num_labels = classes
    config.architectures = []  # transformers expects a list for DeiT
    model = AutoModelForImageClassification.from_config(config)
    settle_batch_norms(model, 64)
    model.eval()
    with torch.no_grad():  # a head that was just drawn has a bias of 0
        torch.nn.init.normal_(head_of(model).bias)
        for norm in [one for one in model.modules() if isinstance(one, torch.nn.LayerNorm)]:
            torch.nn.init.normal_(norm.weight, mean=1)
            torch.nn.init.normal_(norm.bias)
    return model


@pytest.mark.parametrize("name", EXACT)
def test_the_mean_of_the_map_and_the_rest_are_the_logits(name):
    model, pixel_values = make_model(TINY_CONFIGS[name]), noise(name)
    assert supports_activation_map(model)
    with collect_features(model) as found:
        logits = model(pixel_values=pixel_values).logits
    made = to_activation_map(model, found[0], pixel_values.shape[-2:])
    assert made.values.ndim == 4 and made.values.shape[:2] == (4, 3)
    assert made.values.shape[2] == made.values.shape[3] > 1
    assert made.values.std() > 1e-4
    torch.testing.assert_close(made.logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dinov2-small", "efficientnet-b0", "convnextv2-tiny"])
def test_the_map_trains_the_head_and_the_layers_below(name):
    model = make_model(TINY_CONFIGS[name])
    class_activation_map(model, noise(name)).values[:, 1, 0, 0].sum().backward()
    parameters = list(model.parameters())
    reached = [one for one in parameters if one.grad is not None and one.grad.abs().max() > 0]
    assert head_of(model).weight.grad.abs().max() > 0
    assert len(reached) > len(parameters) / 2


def test_places_of_the_map_are_places_of_the_image():
    """A change in the top right corner changes the map most there."""
    for name in ("dinov2-small", "swin-tiny", "xray-cnn"):
        model, size = make_model(TINY_CONFIGS[name]), TINY_SIZES[name]
        plain = torch.zeros(1, 3, size, size)
        changed = plain.clone()
        changed[..., : size // 4, -size // 4 :] = 2
        maps = [class_activation_map(model, one).values for one in (plain, changed)]
        change = (maps[1] - maps[0]).abs().sum(dim=1)[0]
        row, column = divmod(int(change.argmax()), change.shape[1])
        assert row < change.shape[0] / 2 <= column, name


@pytest.mark.parametrize("name", OTHER_TIMM)
def test_of_other_timm_models_only_those_that_average_have_a_map(name):
    architecture, _, pool = name.partition(".")
    settings = {"global_pool": pool} if pool else {}
    model = make_model(TimmWrapperConfig(architecture=architecture, model_args=settings))
    assert supports_activation_map(model) is OTHER_TIMM[name]
    if OTHER_TIMM[name]:
        pixel_values = torch.randn(2, 3, 64, 64)
        logits = model(pixel_values=pixel_values).logits
        made = class_activation_map(model, pixel_values)
        torch.testing.assert_close(made.logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_a_head_that_averages_nothing_has_no_map(name):
    model = make_model(TINY_CONFIGS[name])
    assert not supports_activation_map(model)
    with pytest.raises(ModelError, match="no class activation map"):
        class_activation_map(model, noise(name))
