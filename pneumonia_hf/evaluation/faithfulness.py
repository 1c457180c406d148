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

from pneumonia_hf.evaluation.localisation import (
    BOXES,
    FEWEST,
    PHANTOM,
    MarkedImage,
    Truth,
    compare_with_truth,
    locate,
)
from pneumonia_hf.inference.attribution import methods_for
from pneumonia_hf.inference.attribution_methods import CELLS, METHODS, enlarge
from pneumonia_hf.statistics.intervals import Interval, percentile_interval

if TYPE_CHECKING:
    from pneumonia_hf.evaluation.steps import Steps
    from pneumonia_hf.inference.network import Network
    from pneumonia_hf.inference.predictor import Predictor

REPEATED = 6  # images of which maps are made again, with other weights and of the shifted image
PERMUTATIONS = 2  # networks with permuted weights
SHIFT = 0.03  # of the side, for repeatability
# Correlations (Pearson) that separate pass from fail. A map of a network with other weights
# should have little to do with the real one, and one of a shifted image much.
MOST_AFTER_RANDOMISATION, LEAST_REPEATABLE = 0.5, 0.7
PASSES = {"occlusion": 50}  # forward passes for a map, where it is not one
REFERENCE = "occlusion"  # the method with which the others are compared
REPEATS = ("occlusion", "randomised", "repeatable")  # what is measured on REPEATED images


@dataclass(frozen=True)
class MethodResult:
    """How a method did on some images: means with 95% intervals over the images."""

    method: str  # of METHODS
    seconds: float  # for the map of an image, the median
    occlusion: Interval  # rank correlation with occlusion
    randomised: Interval  # correlation with the map after the weights are permuted
    repeatable: Interval  # correlation with the map of a shifted image, shifted back
    truth: Truth | None  # that decides: the boxes, or else the phantom

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the method fails; none if it passes."""
        tests = {
            "not shown to point at disease better than a fixed map of the lungs": (
                self.truth is not None and not self.truth.methods[self.method].hits_gain.low > 0
            ),
            "much the same with permuted weights": not (
                self.randomised.value < MOST_AFTER_RANDOMISATION
            ),
            "not repeatable": not self.repeatable.value > LEAST_REPEATABLE,
        }
        return tuple(name for name, failed in tests.items() if failed)

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
        """The method that passes and points at disease most often, the quicker one of equals."""

        def rank(one: MethodResult) -> tuple[float, float]:
            hits = one.truth.methods[one.method].hits.value if one.truth else 0.0
            return hits, -one.seconds

        passing = [one for one in self.results if one.verdict == "pass"]
        best = max(passing, key=rank, default=None)
        return best and best.method


def measure_faithfulness(
    predictor: Predictor,
    images: Sequence[MarkedImage],
    films: Sequence[MarkedImage] = (),
    steps: Steps | None = None,
    seed: int = 13,
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
        seed: of the permutation.
        resamples: of the bootstrap over patients.
    """
    from pneumonia_hf.evaluation.steps import Steps

    steps, network = steps or Steps(), predictor.network
    names = methods_for(predictor)
    tables: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(names, key=lambda name: name != REFERENCE):
        reference = tables[REFERENCE]["cells"] if tables else None
        tables[name] = steps.run(
            f"attribution {name} of {len(images)}",
            lambda name=name, reference=reference: _test_method(
                network, images, films, name, reference, seed
            ),
            passes=count_passes(name, len(images), len(films)),
        )
    truths = []
    boxed = np.flatnonzero([one.mask is not None for one in images])
    for source, known, start in (
        (BOXES, [images[row] for row in boxed], boxed),
        (PHANTOM, films[1:], len(images) + 1 + np.arange(len(films[1:]))),
    ):
        if len({one.patient for one in known}) >= FEWEST:
            found = {name: tables[name]["located"][start] for name in names}
            truths.append(
                compare_with_truth(
                    source,
                    [one.mask for one in known],
                    [one.patient for one in known],
                    found,
                    resamples,
                )
            )
    patients = [one.patient for one in images[:REPEATED]]
    draws = np.random.default_rng(seed).integers(len(patients), size=(resamples, len(patients)))

    def mean(values: np.ndarray) -> Interval:
        return percentile_interval(values.mean(), values[draws].mean(axis=1).tolist())

    results = [
        MethodResult(
            name,
            float(np.median(tables[name]["seconds"])),
            *(mean(tables[name][key]) for key in REPEATS),
            truths[0] if truths else None,
        )
        for name in names
    ]
    return Faithfulness(tuple(results), tuple(truths), len(images))


def count_passes(method: str, images: int, films: int) -> int:
    """Return how many forward passes the tests of a method need, about."""
    maps = images + films + min(images, REPEATED) * (PERMUTATIONS + 1)
    return maps * PASSES.get(method, 1)


def _test_method(
    network: Network,
    images: Sequence[MarkedImage],
    films: Sequence[MarkedImage],
    name: str,
    reference: np.ndarray | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return each measurement of a method, one number an image.

    `reference` are the maps of occlusion on the first images, [N, CELLS, CELLS]; None: these are.
    """

    def explain(pixel_values: Tensor, of: Network = network) -> Tensor:
        return METHODS[name](of, pixel_values).cpu()

    # The first map takes several times as long. Of films, what is added to the normal one counts.
    normal = explain(network.pixel_values([(*films, *images)[0].image]))
    others = [_permute_weights(network, seed + number) for number in range(PERMUTATIONS)]
    rows: dict[str, list] = {key: [] for key in ("seconds", "located", "cells", *REPEATS)}
    for number, one in enumerate((*images, *films)):
        pixel_values = network.pixel_values([one.image])
        started = time.perf_counter()
        values = explain(pixel_values)
        rows["seconds"].append(time.perf_counter() - started)
        shown = values if number < len(images) else values - normal
        rows["located"].append((np.nan, np.nan) if one.mask is None else locate(shown, one.mask))
        if number >= min(REPEATED, len(images)):
            continue
        size = pixel_values.shape[-2:]
        full = enlarge(values, size)
        rows["cells"].append(_to_cells(full).numpy())
        compared = rows["cells"][-1] if reference is None else reference[number]
        rows["occlusion"].append(_correlate(full, torch.from_numpy(compared), ranks=True))
        changed = [enlarge(explain(pixel_values, other), size) for other in others]
        rows["randomised"].append(np.mean([_correlate(full, other) for other in changed]))
        shift = max(1, round(SHIFT * size[-1]))
        moved = enlarge(explain(pixel_values.roll((shift, shift), dims=(-2, -1))), size)
        # Where the image was wrapped around is left out.
        back = moved.roll((-shift, -shift), dims=(-2, -1))[:-shift, :-shift]
        rows["repeatable"].append(_correlate(full[:-shift, :-shift], back))
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


def _to_cells(values: Tensor) -> Tensor:
    return adaptive_avg_pool2d(values[None].double(), CELLS)[0]


def _correlate(first: Tensor, second: Tensor, ranks: bool = False) -> float:
    """Return the correlation of two maps over cells, Pearson's or Spearman's; 0 if one is constant.

    Of a map that is nearly 0 in most places, ranks compare nothing but noise there.
    """
    from scipy.stats import pearsonr, spearmanr

    cells = [_to_cells(one).flatten().numpy() for one in (first, second)]
    if any(np.ptp(one) == 0 for one in cells):
        return 0.0
    return float((spearmanr if ranks else pearsonr)(*cells).statistic)
