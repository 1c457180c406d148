"""A network scores with the weights that it has, whenever they were changed."""

import copy

import numpy as np
import pytest
import torch
from helpers import draw_xray, save_tiny_body

from pneumonia_hf.inference.network import Network
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.models.build import ModelConfig, build_model

IMAGES = [draw_xray(seed, ill=seed % 2 == 0, size=(80, 70)) for seed in range(3)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model with batch norms, which are folded into a copy of its weights, and its processor."""
    body = save_tiny_body("xray-cnn", tmp_path_factory.mktemp("body"))
    return build_model(ModelConfig("xray-cnn", str(body), 64))


def halve_head(model):
    head_of(model).weight /= 2


def move_norms(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 0.5


@pytest.mark.parametrize("change", [halve_head, move_norms])
def test_scores_follow_weights_that_are_changed_after_the_first_score(parts, change):
    model, processor = copy.deepcopy(parts[0]), parts[1]
    network = Network(model, processor)
    before = network.log_odds(IMAGES)
    with torch.no_grad():
        change(model)
    after = network.log_odds(IMAGES)
    assert np.abs(after - before).max() > 1e-3
    assert np.array_equal(after, Network(model, processor).log_odds(IMAGES))


def test_copied_network_with_another_model_scores_by_that_model(parts):
    network = Network(*parts)
    before = network.log_odds(IMAGES)
    other = copy.copy(network)
    other.model = copy.deepcopy(network.model)
    with torch.no_grad():
        halve_head(other.model)
    assert np.abs(other.log_odds(IMAGES) - before).max() > 1e-3
    assert np.array_equal(network.log_odds(IMAGES), before)


def test_scorer_is_made_once_while_the_weights_stay(parts, monkeypatch):
    network, made = Network(*parts), []
    make = network._make_scorer
    monkeypatch.setattr(network, "_make_scorer", lambda: made.append(1) or make())
    for _ in range(3):
        network.score(IMAGES, batch_size=2)
    assert network.can_score_alone is False and made == [1]
