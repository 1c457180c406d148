"""Fit the input gate of a network, and set its limits on hospitals that were left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pneumonia_hf.data.sources import open_images
from pneumonia_hf.evaluation.gate_images import CHANGES, DRAWINGS, draw_phantoms, vary
from pneumonia_hf.imaging.preprocess import resize
from pneumonia_hf.inference.frontal import FRONTAL, KINDS, Frontal
from pneumonia_hf.inference.gate import Gate, Layer, middle_layer
from pneumonia_hf.inference.network import Network
from pneumonia_hf.inference.read_ahead import CHUNK, read_or_fail
from pneumonia_hf.statistics.log_odds import to_logit

if TYPE_CHECKING:
    from datasets import Dataset

LEAST_IMAGES = (200, 50)  # of training and validation; with fewer there is no gate
MOST_IMAGES = (2000, 1000)
DRAWN = 80  # images by each function of DRAWINGS
COMPONENTS = 256  # principal components that the classifier is fitted to
STRENGTH = 10.0  # times the mean loss, against half the squared weights
REFUSED = 0.001  # of a hospital's films, at most
TAIL = 0.05  # of a hospital's films, to which the tail is fitted
# With one hospital, its limit is moved down by this, in log odds.
MARGIN = 1.0
REFERRED = (0.01, 0.1)  # of the validation images, and of the films of a hospital that was left out


@dataclass(frozen=True)
class Described:
    """Features of films or of other images."""

    features: np.ndarray  # [N, F]
    kinds: np.ndarray  # [N], indices of KINDS
    hospitals: np.ndarray  # [N] of text; empty if of none

    def select(self, rows: np.ndarray) -> Described:
        """Return a part."""
        return Described(self.features[rows], self.kinds[rows], self.hospitals[rows])


def fit_gate(
    network: Network, train: Dataset, validation: Dataset, threshold: float
) -> Gate | None:
    """Return the input gate of a calibrated network, or None with fewer than LEAST_IMAGES.

    It is fitted to up to MOST_IMAGES, as many of each hospital where they suffice; `threshold` is
    the probability from which an image counts as PNEUMONIA.
    """
    if len(train) < LEAST_IMAGES[0] or len(validation) < LEAST_IMAGES[1]:
        return None
    random, layer = np.random.default_rng(13), middle_layer(network.model)
    train, validation = (
        data.select(draw_rows(list_hospitals(data), most, random))
        for data, most in zip((train, validation), MOST_IMAGES, strict=True)
    )
    films, copies = describe_films(network, layer, train, random)
    # With one hospital nothing can be left out, and the validation images in other looks stand in.
    is_alone = len(np.unique(films.hospitals)) == 1
    seen, seen_copies = describe_films(network, layer, validation, random, with_copies=is_alone)
    others = describe_others(network, layer, random)
    frontal = fit_frontal(films, copies, others, seen, seen_copies)
    gate = Gate.fit(layer, films.features, _number(train))
    limit, reason = set_limit(
        gate, films, seen, _number(train), find_errors(network, validation, threshold)
    )
    return replace(gate, limit=limit, limit_reason=reason, frontal=frontal)


def list_hospitals(data: Dataset) -> np.ndarray:
    """Return the hospital of each image, or its source where that is not known: text [N]."""
    name = "hospital" if "hospital" in data.column_names else "source"
    return np.asarray(data[name][:], str)


def draw_rows(hospitals: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """Return up to `most` rows in order, as many of each hospital where they suffice."""
    order = random.permutation(len(hospitals))
    ranks = np.empty(len(hospitals), int)  # of each row within its hospital
    for one in np.unique(hospitals):
        rows = order[hospitals[order] == one]
        ranks[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(ranks[order], kind="stable")[:most]])


def _number(data: Dataset) -> np.ndarray:
    """Return the class and source of each image as a number: int [N]."""
    pairs = zip(data["source"][:], data["label"][:], strict=True)
    return np.unique([f"{source} {label}" for source, label in pairs], return_inverse=True)[1]


def describe_films(
    network: Network,
    layer: Layer,
    data: Dataset,
    random: np.random.Generator,
    with_copies: bool = True,
) -> tuple[Described, Described | None]:
    """Return the features of films and, `with_copies`, of a copy of each in another look.

    Four of nine copies stay frontal X-rays, the others are changed by CHANGES.
    """
    names = [FRONTAL] * 4 + [name for name in CHANGES for _ in range(2 if name == "part" else 1)]
    names = [names[one] for one in random.integers(0, len(names), len(data))]
    plain, copied, queue = [], [], iter(names)
    for images in read_or_fail(open_images(data)):
        plain.append(network.features(images, layer))
        if not with_copies:
            continue
        changed = [
            one if (name := next(queue)) == FRONTAL else CHANGES[name](one, random)
            for one in images
        ]
        copied.append(describe_looks(network, layer, changed, random))
    hospitals = list_hospitals(data)
    films = Described(np.concatenate(plain), np.zeros(len(data), int), hospitals)
    if not with_copies:
        return films, None
    kinds = np.array([KINDS.index(name) for name in names])
    return films, Described(np.concatenate(copied), kinds, hospitals)


def describe_looks(
    network: Network, layer: Layer, images: Sequence[Image.Image], random: np.random.Generator
) -> np.ndarray:
    """Return the features of images in other looks: [N, F]."""
    import torch

    found = []
    for start in range(0, len(images), CHUNK):
        some = images[start : start + CHUNK]
        pixels = torch.cat([resize([one.convert("L")], network.processor) for one in some])
        looks = vary(pixels, random).round().byte().numpy()
        found.append(network.features([Image.fromarray(one[0]) for one in looks], layer))
    return np.concatenate(found)


def describe_others(network: Network, layer: Layer, random: np.random.Generator) -> Described:
    """Return the features of all that is not made of the user's films."""
    images = [
        (kind, draw(random))
        for kind, functions in DRAWINGS.items()
        for draw in functions
        for _ in range(DRAWN)
    ]
    images += draw_phantoms(random)
    features = describe_looks(network, layer, [image for _, image in images], random)
    kinds = np.array([KINDS.index(kind) for kind, _ in images])
    return Described(features, kinds, np.full(len(kinds), ""))


def fit_frontal(
    films: Described,
    copies: Described,
    others: Described,
    seen: Described,
    seen_copies: Described | None,
) -> Frontal:
    """Return the classifier with its limit: REFUSED of the films of a hospital left out.

    Args:
        films, copies: of the training images.
        others: of what is drawn.
        seen, seen_copies: of the validation images; their copies are needed with one hospital.
    """
    fitted = _join(films, copies, others)
    scored, hospitals, margin = _join(films, seen), np.unique(films.hospitals), 0.0
    if len(hospitals) == 1:
        scored, hospitals, margin = seen_copies, [""], MARGIN  # nothing is left out
    limits = []
    for hospital in hospitals:
        part = fit_classifier(
            fitted.select((fitted.hospitals != hospital) | (fitted.hospitals == ""))
        )
        is_left_out = (scored.hospitals == hospital) | (hospital == "")
        found = part.log_probabilities(
            scored.features[is_left_out & (scored.kinds == KINDS.index(FRONTAL))]
        )
        limits.append(find_tail(to_logit(np.exp(found[:, 0]))) - margin)
    frontal = fit_classifier(fitted)
    bias = frontal.bias.copy()
    bias[KINDS.index(FRONTAL)] -= min(limits)
    return replace(frontal, bias=bias)


def find_tail(odds: np.ndarray) -> float:
    """Return the log odds below which REFUSED of the films lie, by an exponential tail.

    The lowest of a thousand films would decide alone, also if it is on its side or mislabelled. It
    is the least that is returned, for where films are few the tail is far from all of them.
    """
    start = np.quantile(odds, TAIL)
    tail = start - np.mean(start - odds[odds <= start]) * np.log(TAIL / REFUSED)
    return float(max(tail, odds.min()))


def _join(*parts: Described) -> Described:
    return Described(
        *(
            np.concatenate([getattr(one, name) for one in parts])
            for name in ("features", "kinds", "hospitals")
        )
    )


def fit_classifier(described: Described) -> Frontal:
    """Return a logistic regression on principal components, as one matrix of the features."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    features = described.features.astype(np.float32)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    count = min(COMPONENTS, len(features) // 4, features.shape[1])
    # Not whitened, so that components of little variance, mostly noise, count little.
    reduction = PCA(count, svd_solver="randomized", random_state=13)
    inside = reduction.fit_transform((features - mean) / spread)
    # As if all kinds were equally many.
    strength = STRENGTH / len(features)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    model.fit(inside, described.kinds)
    axes = reduction.components_  # [count, F]
    weights = (model.coef_ @ axes / spread).T  # [F, kinds that occur]
    bias = model.intercept_ - mean @ weights
    # A kind that never occurs, such as side views before, is never found.
    everything = Frontal(np.zeros((features.shape[1], len(KINDS))), np.full(len(KINDS), -1e3))
    everything.weights[:, model.classes_] = weights
    everything.bias[model.classes_] = bias - reduction.mean_ @ (model.coef_ @ axes).T
    return everything


def find_errors(network: Network, data: Dataset, threshold: float) -> np.ndarray:
    """Return whether each image is on the wrong side of the threshold: bool [N]."""
    chunks = read_or_fail(open_images(data))
    log_odds = np.concatenate([network.log_odds(images) for images in chunks])
    return (log_odds >= to_logit(threshold)) != (np.asarray(data["label"][:]) == 1)


def set_limit(
    gate: Gate, films: Described, seen: Described, groups: np.ndarray, wrong: np.ndarray
) -> tuple[float, str]:
    """Return the distance beyond which images are referred, and why it is that.

    It refers at most REFERRED, and moves up until it refers images with more errors than the rest.

    Args:
        gate: whose limit is 1.
        films: of training, which the gate was fitted to.
        seen: of validation.
        groups: the class and source of each film.
        wrong: whether the model is wrong about each validation image: bool [N].
    """
    distances = gate.distances(seen.features)
    of_validation, of_hospital = REFERRED
    limit = float(np.quantile(distances, 1 - of_validation))
    everything, hospitals = _join(films, seen), np.unique(films.hospitals)
    for hospital in hospitals if len(hospitals) > 1 else []:
        kept = films.hospitals != hospital
        other = Gate.fit(gate.layer, films.features[kept], groups[kept])
        far = other.distances(everything.features[everything.hospitals == hospital])
        limit = max(limit, float(np.quantile(far, 1 - of_hospital)))
    budget = f"the limit leaves {1 - of_validation:.0%} of the validation images nearer"
    if len(hospitals) > 1:
        budget += f", and {1 - of_hospital:.0%} of the films of each hospital that was left out"
    far = distances >= limit
    if not far.any():
        return limit, f"{budget}; no validation image lies beyond it".capitalize() + "."
    for candidate in [limit, *np.sort(distances[far])]:
        far = distances >= candidate
        if wrong[far].mean() > wrong[~far].mean():
            why = (
                f"beyond it {wrong[far].mean():.1%} are wrong, of the rest {wrong[~far].mean():.1%}"
            )
            moved = "; moved up" if candidate > limit else ""
            return float(candidate), f"{budget}{moved}; {why}".capitalize() + "."
    return np.inf, (
        f"No image is referred: beyond the first limit, {limit:.2f}, the model is not wrong more "
        f"often."
    )
