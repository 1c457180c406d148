"""Do attribution maps mean anything? Each method is tested, and gets a verdict."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pneumonia_hf.imaging.transforms import replace_frame
from pneumonia_hf.inference.attribution import methods_for
from pneumonia_hf.inference.attribution_methods import (
    CELLS,
    COMPLETE,
    METHODS,
    RANDOM_METHODS,
    occlusion,
)
from pneumonia_hf.statistics.intervals import Interval, percentile_interval

if TYPE_CHECKING:
    from pneumonia_hf.evaluation.steps import Steps
    from pneumonia_hf.inference.network import Network
    from pneumonia_hf.inference.predictor import Predictor

GRID = 14  # cells a side that are deleted and inserted, in the order of a map
SHARES = np.linspace(0, 1, 15)  # of the cells, at which the score is measured
RANDOM_MAPS = 3  # an image, as a control
DONORS = 2  # normal images for each image
PERMUTATIONS = 2  # networks with permuted weights
SHIFT = 0.03  # of the side, for repeatability
BORDER = 0.1  # of each side
BORDER_AREA = 1 - (1 - 2 * BORDER) ** 2
NOISE_RADIUS, NOISE_SAMPLES = 0.05, 2  # of captum's sensitivity
BLOCKS, BLOCK_SAMPLES = 7, 16  # cells a side and samples of captum's infidelity
# Correlations (Pearson) that separate pass from fail. A map of a network with other weights
# should have little to do with the real one, and one of a shifted image much.
MOST_AFTER_RANDOMISATION, LEAST_REPEATABLE = 0.5, 0.7
CONTROLS = ("random", "centre")  # maps that know nothing of the image


@dataclass(frozen=True)
class MethodResult:
    """How a method did on some images: means with 95% intervals over the images."""

    method: str  # of METHODS, or one of CONTROLS
    seconds: float  # for the map of an image, the median
    # The mean probability while the highest cells are replaced by those of normal images (lower
    # is better), and while they are put into normal images (higher is better).
    deletion: Interval
    insertion: Interval
    # Insertion less deletion, minus that of random maps and of a centre blob: above 0 is better.
    gain_over_random: Interval | None  # None: a control
    gain_over_centre: Interval | None
    occlusion: Interval | None  # rank correlation with occlusion
    randomised: Interval | None  # correlation with the map after the weights are permuted
    repeatable: Interval | None  # correlation with the map of a shifted image, shifted back
    border: Interval | None  # share of the positive attribution in the outer BORDER of each side
    seeds: Interval | None  # correlation with the map of another seed; None: nothing is random
    # How far the sum of integrated gradients is from what it should be, as a share.
    completeness_error: Interval | None
    infidelity: Interval | None  # captum's, normalised; lower is better (Yeh et al. 2019)
    sensitivity: Interval | None  # captum's largest relative change under noise; lower is better

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the method fails; none if it passes. A control has none."""
        if self.gain_over_random is None:
            return ()
        tests = {
            "not shown to be better than random maps": not self.gain_over_random.low > 0,
            "not shown to be better than a blob in the centre": not self.gain_over_centre.low > 0,
            "much the same with permuted weights": not (
                self.randomised.value < MOST_AFTER_RANDOMISATION
            ),
            "not repeatable": not self.repeatable.value > LEAST_REPEATABLE,
            "depends on the seed": self.seeds is not None
            and not self.seeds.value > LEAST_REPEATABLE,
            "not complete": self.completeness_error is not None
            and not self.completeness_error.value < COMPLETE,
        }
        return tuple(name for name, failed in tests.items() if failed)

    @property
    def verdict(self) -> str:
        """The verdict: pass or fail; empty for a control."""
        return "" if self.gain_over_random is None else "fail" if self.faults else "pass"


@dataclass(frozen=True)
class Faithfulness:
    """The results of all methods that a model supports, and of the controls."""

    results: tuple[MethodResult, ...]
    images: int
    border_area: float  # share of the image in the border: what an even map would have there

    @property
    def best(self) -> str | None:
        """The method that passes with the largest gain over random maps per second."""
        passing = [one for one in self.results if one.verdict == "pass"]
        best = max(passing, key=lambda one: one.gain_over_random.value / one.seconds, default=None)
        return best and best.method


def measure_agreement(
    predictor: Predictor, images: Sequence[Image.Image], methods: Sequence[str]
) -> dict[str, list[float]]:
    """Return Spearman's rank correlation of each image's map with occlusion, by method.

    Maps are compared with their sign, before scaling and clipping for display; a constant map
    counts as 0.
    """
    agreement: dict[str, list[float]] = {name: [] for name in methods}
    network = predictor.network
    for image in images:
        pixel_values = network.pixel_values([image])
        fall = occlusion(network, pixel_values).values
        for name in methods:
            with torch.enable_grad():
                found = METHODS[name](network, pixel_values).values
            agreement[name].append(_correlate(_resize(found, pixel_values.shape[-2:]), fall))
    return agreement


def measure_faithfulness(
    predictor: Predictor,
    images: Sequence[Image.Image],
    normals: Sequence[Image.Image],
    steps: Steps | None = None,
    seed: int = 13,
    resamples: int = 1000,
) -> Faithfulness:
    """Test every attribution method of a model of one network.

    - Deletion and insertion (after Petsiuk et al. 2018), beside random maps and a blob in the
      centre. What is deleted takes the cells of normal images, not blur: a blurred chest looks like
      pneumonia (a probability of 0.97 remained), so that blur cannot take the evidence away.
    - Model randomisation (Adebayo et al. 2018): the entries of each weight tensor are permuted.
    - Repeatability: the image is shifted by 3% of its side; another seed, if the method has one.
    - Completeness of integrated gradients.
    - Infidelity and largest sensitivity, by captum.
    - Agreement with occlusion, and the share of attribution in the border.

    Args:
        predictor: of one network.
        images: gray, as `read_xray` returns them; positive ones, since maps show what raised it.
        normals: images with a low score, in turn the donors of cells.
        steps: where the results of each method are kept, if anywhere.
        seed: of random maps, of the permutation and of captum's samples.
        resamples: of the bootstrap over images.
    """
    from tqdm.auto import tqdm

    from pneumonia_hf.evaluation.steps import Steps

    network, steps = predictor.network, steps or Steps()
    names = [*CONTROLS, *methods_for(predictor)]
    tables = {}
    for name in tqdm(names, desc="Attribution maps", unit="method", leave=False):
        tables[name] = steps.run(
            f"attribution {name} of {len(images)}",
            lambda name=name: _test_method(network, images, normals, name, seed),
        )
    draws = np.random.default_rng(seed).integers(len(images), size=(resamples, len(images)))

    def mean(values: np.ndarray) -> Interval:
        return percentile_interval(values.mean(), values[draws].mean(axis=1).tolist())

    gains = {name: table["insertion"] - table["deletion"] for name, table in tables.items()}
    results = []
    for name, table in tables.items():
        control = name in CONTROLS
        own = {key: None if control else mean(table[key]) for key in MEASURED}
        own |= {key: mean(table[key]) if key in table else None for key in OPTIONAL}
        results.append(
            MethodResult(
                name,
                float(np.nanmedian(table["seconds"])),
                mean(table["deletion"]),
                mean(table["insertion"]),
                *(None if control else mean(gains[name] - gains[one]) for one in CONTROLS),
                **own,
            )
        )
    return Faithfulness(tuple(results), len(images), BORDER_AREA)


MEASURED = ("occlusion", "randomised", "repeatable", "border", "infidelity", "sensitivity")
OPTIONAL = ("seeds", "completeness_error")  # of some methods


def _test_method(
    network: Network,
    images: Sequence[Image.Image],
    normals: Sequence[Image.Image],
    name: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return each measurement of a method or control, one number an image: [N]."""
    rows = []
    randomised = []
    if name not in CONTROLS:
        randomised = [_permute_weights(network, seed + one) for one in range(PERMUTATIONS)]
        with torch.enable_grad():  # the first map of a method takes several times as long
            METHODS[name](network, network.pixel_values([images[0]]), rough=True)
    for number, image in enumerate(images):
        pixel_values = network.pixel_values([image])
        size = pixel_values.shape[-2:]
        generator = torch.Generator().manual_seed(seed + number)
        started = time.perf_counter()
        found = None
        if name in CONTROLS:
            maps = _draw_controls(name, size, generator)
        else:
            with torch.enable_grad():
                found = METHODS[name](network, pixel_values)  # as a user gets it
            maps = [_resize(found.values, size)]
        row = {"seconds": time.perf_counter() - started}
        if found is not None and found.completeness_error is not None:
            row["completeness_error"] = found.completeness_error
        donors = [normals[(number + one) % len(normals)] for one in range(DONORS)]
        donors = network.pixel_values(donors).split(1)
        areas = [
            _delete_and_insert(network, pixel_values, donor, one)
            for one in maps
            for donor in donors
        ]
        row["deletion"], row["insertion"] = np.mean(areas, axis=0)
        if name not in CONTROLS:
            row |= _measure_map(network, randomised, pixel_values, name, maps[0], seed + number)
        rows.append(row)
    return {key: np.array([row[key] for row in rows], np.float64) for key in rows[0]}


def _measure_map(
    network: Network,
    randomised: Sequence[Network],
    pixel_values: Tensor,
    name: str,
    values: Tensor,
    seed: int,
) -> dict[str, float]:
    from captum.metrics import infidelity, sensitivity_max

    size = pixel_values.shape[-2:]

    def explain(inputs: Tensor, of: Network = network) -> Tensor:
        with torch.enable_grad():
            found = [METHODS[name](of, one[None].detach(), rough=True).values for one in inputs]
        return torch.stack([_resize(one, size) for one in found])

    # captum asks for it again: a map of the same pixels is made once. Maps that are compared with
    # each other have the same steps: complete ones would take minutes an image.
    rough = explain(pixel_values)[0]
    made = {pixel_values.numpy(force=True).tobytes(): rough}

    def explain_once(inputs: Tensor) -> Tensor:
        known = made.get(inputs.numpy(force=True).tobytes())
        return explain(inputs)[:, None] if known is None else known[None, None]

    shift = max(1, round(SHIFT * size[-1]))
    moved = explain(pixel_values.roll((shift, shift), dims=(-2, -1)))[0]
    # Where the image was wrapped around is left out.
    back = moved.roll((-shift, -shift), dims=(-2, -1))[:-shift, :-shift]
    positive = values.clamp(min=0)
    inner = replace_frame(positive[None, None], 0.0, BORDER).sum()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        three = (values / 3).expand(1, 3, *size).to(pixel_values)
        infidel = infidelity(
            network.log_odds_of,
            _replace_blocks,
            pixel_values,
            three,
            n_perturb_samples=BLOCK_SAMPLES,
            max_examples_per_batch=4,
            normalize=True,
        )
        sensitive = sensitivity_max(
            # captum gives a tuple of tensors.
            lambda inputs: explain_once(inputs[0] if isinstance(inputs, tuple) else inputs),
            pixel_values,
            perturb_radius=NOISE_RADIUS,
            n_perturb_samples=NOISE_SAMPLES,
            max_examples_per_batch=1,
        )
    seeds = {}
    if name in RANDOM_METHODS:
        with torch.enable_grad():
            second = METHODS[name](network, pixel_values, seed=seed).values
        seeds = {"seeds": _correlate(values, _resize(second, size), ranks=False)}
    fall = values if name == "occlusion" else occlusion(network, pixel_values).values
    return {
        "occlusion": _correlate(values, fall),
        "randomised": float(
            np.mean(
                [
                    _correlate(rough, explain(pixel_values, one)[0], ranks=False)
                    for one in randomised
                ]
            )
        ),
        "repeatable": _correlate(rough[:-shift, :-shift], back, ranks=False),
        "border": float(1 - inner / positive.sum().clamp_min(1e-12)),
        "infidelity": float(infidel),
        "sensitivity": float(sensitive),
    } | seeds


def _delete_and_insert(
    network: Network, pixel_values: Tensor, donor: Tensor, values: Tensor
) -> tuple[float, float]:
    """Return the mean probability while the donor replaces the highest cells, and the reverse."""
    cells = adaptive_avg_pool2d(values[None, None], GRID).flatten()
    # Equal cells come in the order of a fixed permutation, not from the top to the bottom.
    shuffled = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))
    order = shuffled[cells[shuffled].argsort(descending=True, stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    areas = []
    for first, second in ((donor, pixel_values), (pixel_values, donor)):
        mixed = []
        for share in SHARES:
            taken = (rank < share * len(rank)).float().view(1, 1, GRID, GRID).to(pixel_values)
            mask = interpolate(taken, pixel_values.shape[-2:], mode="nearest")
            mixed.append(first * mask + second * (1 - mask))
        with torch.inference_mode():
            chunks = torch.cat(mixed).split(8)
            odds = torch.cat([network.log_odds_of(one) for one in chunks])
        areas.append(float(torch.trapezoid(odds.sigmoid(), dx=1 / (len(SHARES) - 1))))
    return areas[0], areas[1]


def _draw_controls(name: str, size: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Return maps that know nothing of the image, as smooth as real ones: [H, W] each."""
    if name == "random":
        cells = torch.rand(RANDOM_MAPS, 1, CELLS, CELLS, generator=generator)
        return list(interpolate(cells, tuple(size), mode="bilinear")[:, 0])
    y, x = (torch.linspace(-1, 1, side) for side in size)
    return [torch.exp(-(x[None] ** 2 + y[:, None] ** 2) / 0.5)]


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


def _replace_blocks(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what captum's infidelity asks for: a change, and the inputs with it taken away.

    A quarter of BLOCKS x BLOCKS cells takes the image's mean.
    """
    chosen = (torch.rand(len(inputs), 1, BLOCKS, BLOCKS) < 0.25).to(inputs)
    mask = interpolate(chosen, inputs.shape[-2:], mode="nearest")
    change = mask * (inputs - inputs.mean(dim=(-2, -1), keepdim=True))
    return change, inputs - change


def _resize(values: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(values[None, None].float(), tuple(size), mode="bilinear")[0, 0].cpu()


def _correlate(first: Tensor, second: Tensor, ranks: bool = True) -> float:
    """Return the correlation of two maps over cells, Spearman's or Pearson's; 0 if one is constant.

    Of a map that is nearly 0 in most places, ranks compare nothing but noise there.
    """
    from scipy.stats import pearsonr, spearmanr

    cells = [adaptive_avg_pool2d(one[None, None].float(), CELLS).flatten().cpu().numpy()
             for one in (first, second)]  # fmt: skip
    if any(np.ptp(one) == 0 for one in cells):
        return 0.0
    return float((spearmanr if ranks else pearsonr)(*cells).statistic)
