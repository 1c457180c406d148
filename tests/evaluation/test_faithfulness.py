"""The tests of attribution methods, on a network of which the truth is known."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pneumonia_hf.evaluation import faithfulness
from pneumonia_hf.evaluation.faithfulness import Faithfulness, measure_faithfulness
from pneumonia_hf.inference.attribution_methods import METHODS, RawMap
from pneumonia_hf.inference.network import Network
from pneumonia_hf.statistics.intervals import Interval

SIDE = 56


class Spot(torch.nn.Module):
    """Scores how bright the upper left is, the more the nearer to (16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(id2label={0: "NORMAL", 1: "PNEUMONIA"}, model_type="spot")
        distance = ((torch.arange(SIDE) - 15.5) ** 2).float()
        weight = 0.1 * torch.exp(-(distance[None] + distance[:, None]) / 72)
        self.weight = torch.nn.Parameter(weight)
        self.device = torch.device("cpu")

    def forward(self, pixel_values):
        seen = (pixel_values.mean(dim=1) * self.weight).sum(dim=(1, 2)) - 14
        return SimpleNamespace(logits=torch.stack([0 * seen, seen], dim=1))


class SpotNetwork(Network):
    def pixel_values(self, images):
        return torch.stack([torch.from_numpy(np.array(one)).float() / 255 for one in images])[
            :, None
        ].expand(-1, 3, -1, -1)


def gradient(network, pixel_values, rough=False):
    """The weights times the image: right, but the network's own weights."""
    return RawMap((pixel_values.mean(dim=1)[0] * network.model.weight).detach())


def wrong(network, pixel_values, rough=False):
    """The opposite corner."""
    return RawMap(gradient(network, pixel_values).values.flip(0, 1))


def stubborn(network, pixel_values, rough=False):
    """The right place, whatever the network."""
    values = torch.zeros(SIDE, SIDE)
    values[8:24, 8:24] = 1
    return RawMap(values + torch.linspace(0, 0.1, SIDE))


def restless(network, pixel_values, rough=False):
    """The right place, and noise that changes with the image."""
    seed = int(pixel_values.sum() * 1000) % 2**31
    noise = torch.rand(SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(seed))
    noise = noise.repeat_interleave(4, 0).repeat_interleave(4, 1)
    return RawMap(gradient(network, pixel_values).values * 2 + noise)


@pytest.fixture(scope="module")
def found() -> dict:
    network = SpotNetwork(Spot(), processor=None)
    generator = np.random.default_rng(0)
    images, normals = [], []
    for number in range(8):
        for many, bright in ((images, 230), (normals, 60)):
            pixels = generator.normal(90, 25, (SIDE, SIDE))
            pixels[8:24, 8:24] += bright - 90 + number
            for top, left in ((8, 34), (34, 8), (34, 34)):  # as bright, but of no weight
                pixels[top : top + 16, left : left + 16] += 140
            many.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    methods = {"gradient": gradient, "wrong": wrong, "stubborn": stubborn, "restless": restless}
    with pytest.MonkeyPatch.context() as patch:
        for name, method in methods.items():
            patch.setitem(METHODS, name, method)
        patch.setattr(faithfulness, "methods_for", lambda _: [*methods, "occlusion"])
        predictor = SimpleNamespace(network=network)
        result = measure_faithfulness(predictor, images, normals, resamples=200)
    return {one.method: one for one in result.results}


def test_each_fault_is_found_and_the_right_map_passes(found):
    assert found["gradient"].faults == () and found["gradient"].verdict == "pass"
    assert found["occlusion"].verdict == "pass"
    assert "not shown to be better than random maps" in found["wrong"].faults
    assert found["stubborn"].faults == ("much the same with permuted weights",)
    assert "not repeatable" in found["restless"].faults
    assert found["random"].verdict == found["centre"].verdict == ""
    assert found["random"].gain_over_random is None


def test_deletion_and_insertion_rank_a_right_map_above_the_controls_and_a_wrong_one(found):
    right, bad, random = found["gradient"], found["wrong"], found["random"]
    assert right.deletion.value < random.deletion.value < bad.deletion.value
    assert right.insertion.value > random.insertion.value > bad.insertion.value
    gain = right.insertion.value - right.deletion.value
    control = random.insertion.value - random.deletion.value
    assert right.gain_over_random.value == pytest.approx(gain - control)
    # The square is 8% of the image: when it is gone, so is the score.
    assert right.deletion.value < 0.15 and right.insertion.value > 0.85


def test_agreement_border_and_infidelity_say_what_they_should(found):
    assert found["occlusion"].occlusion.value == pytest.approx(1)
    assert found["gradient"].occlusion.value > 0.3 > found["wrong"].occlusion.value
    assert found["gradient"].border.value < 0.2  # 36% of the image
    # For a linear network the weights times the image have no infidelity (Yeh et al. 2019).
    assert found["gradient"].infidelity.value < 0.05 < found["wrong"].infidelity.value


def test_maps_are_tested_as_a_user_gets_them_and_the_first_is_not_timed(monkeypatch):
    asked = []

    def count(network, pixel_values, rough=False):
        asked.append(rough)
        if len(asked) == 1:
            time.sleep(0.3)  # a library is loaded
        return RawMap(gradient(network, pixel_values).values, 0.25)

    monkeypatch.setitem(METHODS, "count", count)
    network = SpotNetwork(Spot(), processor=None)
    images = [Image.new("L", (SIDE, SIDE), 40 * number) for number in range(5)]
    table = faithfulness._test_method(network, images, images, "count", 0)
    assert asked.count(False) == 5
    assert (table["seconds"] < 0.3).all()
    assert (table["completeness_error"] == 0.25).all()
    # Of an image: its map, that of the shifted one and of other weights, and captum's of noise.
    per_image = 2 + faithfulness.PERMUTATIONS + faithfulness.NOISE_SAMPLES
    assert asked.count(True) == 1 + 5 * per_image


def test_incomplete_gradients_and_maps_of_the_seed_fail(found):
    from dataclasses import replace

    right = found["gradient"]
    assert right.seeds is None and right.completeness_error is None
    for name, value, fault in (
        ("completeness_error", 0.06, "not complete"),
        ("seeds", 0.6, "depends on the seed"),
    ):
        assert replace(right, **{name: Interval(value, value, value)}).faults == (fault,)
    complete = replace(right, completeness_error=Interval(0.04, 0.0, 0.1))
    assert replace(complete, seeds=Interval(0.8, 0.7, 0.9)).verdict == "pass"


def test_a_random_method_is_asked_for_another_seed(monkeypatch):
    seeds = []

    def drawn(network, pixel_values, rough=False, seed=13):
        seeds.append(seed)
        noise = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed))
        return RawMap(noise)

    monkeypatch.setitem(METHODS, "drawn", drawn)
    monkeypatch.setattr(faithfulness, "RANDOM_METHODS", {"drawn"})
    network = SpotNetwork(Spot(), processor=None)
    images = [Image.new("L", (SIDE, SIDE), 40 * number) for number in range(5)]
    table = faithfulness._test_method(network, images, images, "drawn", 20)
    assert len(set(seeds)) == 6  # the usual one, and one an image
    assert np.abs(table["seeds"]).max() < 0.9


def test_the_best_method_gains_most_per_second_of_those_that_pass(found):
    from dataclasses import replace

    results = (
        replace(found["gradient"], seconds=1.0),
        replace(found["occlusion"], seconds=0.1),
        replace(found["stubborn"], seconds=0.001),  # fails
    )
    assert Faithfulness(results, 8, 0.36).best == "occlusion"
    assert Faithfulness((found["wrong"],), 8, 0.36).best is None
