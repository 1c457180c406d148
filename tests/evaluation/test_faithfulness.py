"""The tests of attribution methods, on a network of which the truth is known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pneumonia_hf.evaluation import faithfulness, localisation
from pneumonia_hf.evaluation.faithfulness import Faithfulness, MethodResult, measure_faithfulness
from pneumonia_hf.evaluation.localisation import MarkedImage
from pneumonia_hf.inference.attribution_methods import METHODS
from pneumonia_hf.inference.network import Network
from pneumonia_hf.statistics.intervals import Interval

SIDE, SQUARE = 56, 16
CORNERS = [(8, 8), (8, 32), (32, 8), (32, 32)]  # of the squares, top and left


def cover(corner: tuple[int, int], scale: int = 1) -> np.ndarray:
    mask = np.zeros((scale * SIDE, scale * SIDE), bool)
    top, left = (scale * one for one in corner)
    mask[top : top + scale * SQUARE, left : left + scale * SQUARE] = True
    return mask


class Squares(torch.nn.Module):
    """Scores how bright the four squares are, less the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(id2label={0: "NORMAL", 1: "PNEUMONIA"}, model_type="squares")
        weight = torch.from_numpy(sum(map(cover, CORNERS)) * 0.1).float()
        self.weight = torch.nn.Parameter(weight - weight.mean())
        self.device = torch.device("cpu")

    def forward(self, pixel_values):
        seen = (pixel_values.mean(dim=1) * self.weight).sum(dim=(1, 2))
        return SimpleNamespace(logits=torch.stack([0 * seen, seen], dim=1))


class SquaresNetwork(Network):
    def pixel_values(self, images):
        return torch.stack([torch.from_numpy(np.array(one)).float() / 255 for one in images])[
            :, None
        ].expand(-1, 3, -1, -1)


def gradient(network, pixel_values):
    """The weights times the image less its mean: right."""
    pixels = pixel_values.mean(dim=1)[0]
    return ((pixels - pixels.mean()) * network.model.weight).detach()


def wrong(network, pixel_values):
    """The opposite corner."""
    return gradient(network, pixel_values).flip(0, 1)


def stubborn(network, pixel_values):
    """What is bright, whatever the network."""
    return pixel_values.mean(dim=1)[0]


def restless(network, pixel_values):
    """The right place, and noise that changes with the image."""
    seed = int(pixel_values[0, 0, :4].sum() * 1000) % 2**31
    noise = torch.rand(SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(seed))
    noise = noise.repeat_interleave(4, 0).repeat_interleave(4, 1)
    return gradient(network, pixel_values) * 2 + noise


def draw(number: int, is_bright: bool = True) -> MarkedImage:
    """Draw noise with a bright square in one of the corners."""
    pixels = np.random.default_rng(number).normal(90, 25, (SIDE, SIDE))
    corner = CORNERS[number % 4]
    pixels[cover(corner)] += 140 if is_bright else 0
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    mask = cover(corner, localisation.SIDE // SIDE) if is_bright else None
    return MarkedImage(image, mask, f"patient {number}")


def measure(images, films=(), **methods) -> Faithfulness:
    """Test methods on the network of which the truth is known."""
    with pytest.MonkeyPatch.context() as patch:
        for name, method in methods.items():
            patch.setitem(METHODS, name, method)
        patch.setattr(faithfulness, "methods_for", lambda _: [*methods, "occlusion"])
        predictor = SimpleNamespace(network=SquaresNetwork(Squares(), processor=None))
        return measure_faithfulness(predictor, images, films, resamples=200)


@pytest.fixture(scope="module")
def found() -> Faithfulness:
    images = [draw(number) for number in range(12)]
    return measure(images, gradient=gradient, wrong=wrong, stubborn=stubborn, restless=restless)


def of(found: Faithfulness, name: str) -> MethodResult:
    return next(one for one in found.results if one.method == name)


def test_each_fault_is_found_and_the_right_map_passes(found):
    assert of(found, "gradient").faults == () and of(found, "gradient").verdict == "pass"
    assert of(found, "occlusion").verdict == "pass"
    elsewhere = "not shown to point at disease better than a fixed map of the lungs"
    assert elsewhere in of(found, "wrong").faults and of(found, "wrong").verdict == "fail"
    assert of(found, "stubborn").faults == ("much the same with permuted weights",)
    assert "not repeatable" in of(found, "restless").faults
    # What is bright moves with the image, and is shifted back to the very place.
    assert of(found, "stubborn").repeatable.value == pytest.approx(1)


def test_agreement_with_occlusion_says_what_it_should(found):
    assert of(found, "occlusion").occlusion.value == pytest.approx(1)
    assert np.isnan(of(found, "occlusion").occlusion.low)  # with itself, in every resample
    assert of(found, "gradient").occlusion.value > 0.3 > of(found, "wrong").occlusion.value


def test_the_sentence_counts_hits_beside_a_fixed_map_and_chance(found):
    (truth,) = found.truths
    assert (truth.source, truth.images, truth.patients) == ("boxes", 12, 12)
    assert truth.area.value == pytest.approx(SQUARE**2 / SIDE**2, abs=1e-3)
    assert of(found, "gradient").sentence == (
        "Its maximum lies in the radiologists' boxes in 12 of 12 images; a fixed map of the lungs "
        "hits 0, chance 1."
    )
    located = truth.methods
    assert located["gradient"].hits.value == 1 and located["wrong"].hits.value == 0
    assert located["gradient"].mass.value > 0.4 > 0.1 > located["wrong"].mass.value


def test_of_films_what_is_added_to_the_normal_one_counts_and_decides_without_boxes():
    normal = np.full((SIDE, SIDE), 60)
    normal[cover(CORNERS[0])] = 255  # the brightest square of every film
    films = [MarkedImage(Image.fromarray(normal.astype(np.uint8)), None, "normal")]
    for number in range(12):
        pixels, corner = normal.copy(), CORNERS[1 + number % 3]
        pixels[cover(corner)] = 150
        mask = cover(corner, localisation.SIDE // SIDE)
        films.append(MarkedImage(Image.fromarray(pixels.astype(np.uint8)), mask, f"film {number}"))
    images = [replace(draw(number), mask=None) for number in range(4)]
    found = measure(images, films, gradient=gradient, wrong=wrong)
    (truth,) = found.truths
    assert (truth.source, truth.images) == ("phantom", 12)
    assert of(found, "gradient").sentence.startswith(
        "Its greatest rise lies in the simulated opacity in 12 of 12 films;"
    )
    assert of(found, "gradient").verdict == "pass" and of(found, "wrong").verdict == "fail"


def test_without_any_truth_there_is_no_sentence(found):
    images = [replace(draw(number), mask=None) for number in range(4)]
    plain = measure(images, gradient=gradient)
    assert plain.truths == () and of(plain, "gradient").sentence == ""
    assert of(plain, "gradient").verdict == "pass"


def test_the_best_method_hits_most_of_those_that_pass(found):
    (truth,) = found.truths
    fewer = replace(truth.methods["gradient"], hits=Interval(0.9, 0.8, 1.0))
    gradient_ = replace(
        of(found, "gradient"), truth=replace(truth, methods={**truth.methods, "gradient": fewer})
    )
    results = (of(found, "stubborn"), gradient_, of(found, "occlusion"))  # the first fails
    assert Faithfulness(results, found.truths, 12).best == "occlusion"
    assert Faithfulness(results[:2], found.truths, 12).best == "gradient"
    assert Faithfulness(results[:1], found.truths, 12).best is None


def test_maps_of_all_images_and_of_some_again_are_made(monkeypatch):
    asked = []

    def count(network, pixel_values):
        asked.append(1)
        return gradient(network, pixel_values)

    images = [draw(number) for number in range(10)]
    measure(images, [draw(0, is_bright=False), *images[:3]], count=count)
    # One that loads the library; all images and films; other weights and a shift of some.
    repeats = faithfulness.REPEATED * (faithfulness.PERMUTATIONS + 1)
    assert len(asked) == 1 + 10 + 4 + repeats
