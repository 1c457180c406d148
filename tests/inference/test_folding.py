"""Batch norms are folded for scoring: the same logits, and the model stays as it is."""

import pytest
import torch
from helpers import TINY_SIZES, draw_xray, save_tiny_body
from torch import nn

from pneumonia_hf.imaging.preprocess import to_pixel_values
from pneumonia_hf.inference.folding import fold_batch_norms
from pneumonia_hf.models.build import ModelConfig, build_model

SLOW = [pytest.param(name, marks=pytest.mark.slow)
        for name in ("efficientnet-lite0", "convnextv2-tiny", "vit-base")]  # fmt: skip
FAMILIES = ["xray-cnn", *SLOW]


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_norms_are_folded_into_a_copy(name, tmp_path):
    torch.manual_seed(1)
    body = save_tiny_body(name, tmp_path)
    model, processor = build_model(ModelConfig(name, str(body), TINY_SIZES[name]))
    model.eval()
    images = [draw_xray(seed, ill=bool(seed % 2), size=(90, 70)) for seed in range(3)]
    pixel_values = to_pixel_values(images, processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    folded = fold_batch_norms(model, pixel_values)
    assert (folded is model) == (count == 0)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.inference_mode():
        expected, found = (each(pixel_values=pixel_values).logits for each in (model, folded))
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_convolution_that_something_else_reads_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 3)
            self.norm = nn.BatchNorm2d(2)
            self.norm.running_mean.fill_(3.0)
            self.device = torch.device("cpu")

        def forward(self, pixel_values):
            values = self.convolution(pixel_values)
            both = values + self.norm(values)
            return type("Output", (), {"logits": both.mean(dim=(2, 3))})

    model = Shared().eval()
    assert fold_batch_norms(model, torch.randn(2, 3, 8, 8)) is model
