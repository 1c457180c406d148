"""Do attribution maps mean anything? Each method is tested, and gets a verdict."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from pneumonia_hf.data.boxes import BOXES
from pneumonia_hf.evaluation.localisation import (
    FEWEST,
    PHANTOM,
    MarkedImage,
    Truth,
    compare_with_truth,
    locate,
)
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.inference.attribution import methods_for
from pneumonia_hf.inference.attribution_methods import CELLS, METHODS, enlarge
from pneumonia_hf.statistics.intervals import Interval, percentile_interval

if TYPE_CHECKING:
    from pneumonia_hf.inference.network import Network
    from pneumonia_hf.inference.predictor import Predictor

REPEATED = 6  # images of which maps are made again, with other weights and of the shifted image
PERMUTATIONS = 2  # networks with permuted weights
SHIFT = 0.03  # of the side, for repeatability
# Correlations (Pearson) that separate pass from fail. A map of a network with other weights
# should have little to do with the real one, and one of a shifted image much.
MOST_AFTER_RANDOMISATION, LEAST_REPEATABLE = 0.5, 0.7
PASSES = {"occlusion": 50}  # forward passes for a map, where it is not one


@dataclass(frozen=True)
class MethodResult:
    """How a method did on some images: means with 95% intervals over the images."""

    method: str  # of METHODS
    seconds: float  # for the map of an image, the median
    occlusion: Interval  # correlation with occlusion
    randomised: Interval  # correlation with the map after the weights are permuted
    repeatable: Interval  # correlation with the map of a shifted image, shifted back
    truth: Truth | None  # that decides: the boxes, or else the phantom

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the method fails; none if it passes."""
        # A gain without an interval is that of every resample.
        gain = self.truth and self.truth.methods[self.method].hits_gain
        points = not gain or (gain.value > 0 and not gain.low <= 0)
        tests = {
            "not shown to point at disease better than a fixed map of the lungs": points,
            "much the same with permuted weights": (
                self.randomised.value < MOST_AFTER_RANDOMISATION
            ),
            "not repeatable": self.repeatable.value > LEAST_REPEATABLE,
        }
        return tuple(name for name, passed in tests.items() if not passed)

    @property
    def verdict(self) -> str:
        """The verdict: pass or fail."""
        return "fail" if self.faults else "pass"

    @property
    def sentence(self) -> str:
        """How often the method points at disease, as a sentence."""
        return self.truth.describe(self.method) if self.truth else ""


@dataclass(frozen=True)
class Faithfulness:
    """The results of all methods that a model supports."""

    results: tuple[MethodResult, ...]
    truths: tuple[Truth, ...]
    images: int

    @property
    def best(self) -> str | None:
        """Of the methods that pass, the one that points at disease most often."""
        hits = {
            one.method: one.truth.methods[one.method].hits.value if one.truth else 0.0
            for one in self.results
            if one.verdict == "pass"
        }
        return max(hits, key=hits.__getitem__, default=None)


def measure_faithfulness(
    predictor: Predictor,
    images: Sequence[MarkedImage],
    films: Sequence[MarkedImage] = (),
    steps: Steps | None = None,
    resamples: int = 1000,
) -> Faithfulness:
    """Test every attribution method of a model of one network.

    - Truth: how often the highest place of a map, and how much of it, lies in the radiologists'
      boxes; and the same of what a simulated opacity adds to the map of the normal film.
    - Model randomisation (Adebayo et al. 2018): the entries of each weight tensor are permuted.
    - Repeatability: the image is shifted by 3% of its side.
    - Agreement with occlusion.

    Args:
        predictor: of one network.
        images: true positives, since maps show what raised the score; the mask may be None.
        films: of the phantom, as of `simulate_opacities`: the first is the normal one.
        steps: where the results of each method are kept, if anywhere.
        resamples: of the bootstraps.
    """
    steps = steps or Steps()
    tables = {
        name: steps.run(
            f"attribution {name} of {len(images)}",
            lambda name=name: _test_method(predictor.network, images, films, name),
            passes=count_passes(name, len(images), len(films)),
        )
        for name in methods_for(predictor)
    }
    truths = []
    every = [*images, *films]
    for source, rows in ((BOXES, range(len(images))), (PHANTOM, range(len(images), len(every)))):
        known = [row for row in rows if every[row].mask is not None]
        if len({every[row].patient for row in known}) >= FEWEST:
            found = {name: table["located"][known] for name, table in tables.items()}
            marked = [every[row] for row in known]
            truths.append(compare_with_truth(source, marked, found, resamples))
    count = min(len(images), REPEATED)
    draws = np.random.default_rng(13).integers(count, size=(resamples, count))

    def mean(values: np.ndarray) -> Interval:
        return percentile_interval(values.mean(), values[draws].mean(axis=1).tolist())

    results = []
    for name, table in tables.items():
        pairs = zip(table["cells"], tables["occlusion"]["cells"], strict=True)
        agreement = np.array([_correlate(*pair) for pair in pairs])
        seconds = float(np.median(table["seconds"]))
        others = (mean(table[key]) for key in ("randomised", "repeatable"))
        truth = truths[0] if truths else None
        results.append(MethodResult(name, seconds, mean(agreement), *others, truth))
    return Faithfulness(tuple(results), tuple(truths), len(images))


def count_passes(method: str, images: int, films: int) -> int:
    """Return how many forward passes the tests of a method need, about."""
    maps = images + films + min(images, REPEATED) * (PERMUTATIONS + 1)
    return maps * PASSES.get(method, 1)


def _test_method(
    network: Network, images: Sequence[MarkedImage], films: Sequence[MarkedImage], name: str
) -> dict[str, np.ndarray]:
    """Return each measurement of a method, a row an image."""

    def explain(image: MarkedImage, of: Network = network, shift: int = 0) -> Tensor:
        pixel_values = of.pixel_values([image.image])
        return METHODS[name](of, pixel_values.roll((shift, shift), dims=(-2, -1))).cpu()

    # The first map takes several times as long. Of films, what is added to the normal one counts.
    normal = explain((*films, *images)[0])
    others = [_permute_weights(network, seed) for seed in range(PERMUTATIONS)]
    size = network.pixel_values([images[0].image]).shape[-2:]
    shift = max(1, round(SHIFT * size[-1]))
    keys = ("seconds", "located", "cells", "randomised", "repeatable")
    rows: dict[str, list] = {key: [] for key in keys}
    for number, one in enumerate((*images, *films)):
        started = time.perf_counter()
        values = explain(one)
        rows["seconds"].append(time.perf_counter() - started)
        shown = values if number < len(images) else values - normal
        rows["located"].append((np.nan, np.nan) if one.mask is None else locate(shown, one.mask))
        if number < min(REPEATED, len(images)):
            full = enlarge(values, size)
            cells = _to_cells(full)
            rows["cells"].append(cells)
            changed = [_to_cells(enlarge(explain(one, other), size)) for other in others]
            rows["randomised"].append(np.mean([_correlate(cells, other) for other in changed]))
            moved = enlarge(explain(one, shift=shift), size)[shift:, shift:]
            # Where the image was wrapped around is left out.
            pair = (_to_cells(full[:-shift, :-shift]), _to_cells(moved))
            rows["repeatable"].append(_correlate(*pair))
    return {key: np.array(found, np.float64) for key, found in rows.items()}


def _permute_weights(network: Network, seed: int) -> Network:
    """Return a copy of a network, the entries of whose weight tensors are permuted."""
    found = copy.copy(network)
    found.model = copy.deepcopy(network.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.model.parameters():
            flat = parameter.flatten()
            order = torch.randperm(len(flat), generator=generator).to(flat.device)
            parameter.copy_(flat[order].view_as(parameter))
    return found


def _to_cells(values: Tensor) -> np.ndarray:
    return adaptive_avg_pool2d(values[None].double(), CELLS)[0].numpy()


def _correlate(first: np.ndarray, second: np.ndarray) -> float:
    """Return Pearson's correlation of two maps; 0 if one is constant.

    Of a map that is nearly 0 in most places, ranks would compare nothing but noise there.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
