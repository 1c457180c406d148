"""Tests of training over all families: four of them are quick, the others slow."""

import pytest

from pneumonia_hf.models.backbones import BACKBONES

# Two transformers, a network with LayerNorm and one with batch norm.
QUICK = {"vit-base", "dinov2-small", "convnextv2-tiny", "efficientnet-b0"}
FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(BACKBONES)
]


@pytest.fixture(scope="session", params=FAMILIES)
def backbone_name(request) -> str:
    return request.param
