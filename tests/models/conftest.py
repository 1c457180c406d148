"""Fixtures of the tests of networks."""

import pytest
import torch
from helpers import TINY_SIZES

from pneumonia_hf.models.build import ModelConfig, build_model


@pytest.fixture
def tiny(tiny_body, backbone_name):
    """Return a function that builds a tiny model of the family with changed settings."""

    def make(**changes):
        torch.manual_seed(0)
        size = TINY_SIZES[backbone_name]
        return build_model(ModelConfig(backbone_name, str(tiny_body), size, **changes))

    return make
