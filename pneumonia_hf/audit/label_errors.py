"""Cross-validated predictions of the label from frozen features, and doubtful labels.

No image is scored by a model that was fitted on its patient or on another copy of its X-ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import normalise
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from pneumonia_hf.data.pixel_store import XrayPixels

FOLDS = 5
MOST_ROWS = 8_000  # to fit a fold's model, so that memory does not grow with the data
COMPONENTS = 128  # of the features at most, and one for every ten images
PIXELS = "pixels"  # features without a network


@dataclass(frozen=True)
class FeatureConfig:
    """The frozen features for the search for doubtful labels."""

    features: str = "dinov2-small"  # a backbone, or pixels (gray levels, without a network)
    # Of the backbone: a folder or a Hub id, not trained on these labels; None: its own.
    weights: str | None = None

    def __post_init__(self) -> None:
        from pneumonia_hf.models.backbones import BACKBONES

        known = [*sorted(BACKBONES), PIXELS, "none"]
        if self.features not in known:
            raise UserError(f"Unknown features {self.features!r}; choose from {known}.")


def find_label_errors(
    images: XrayPixels, labels: np.ndarray, groups: np.ndarray, config: FeatureConfig
) -> tuple[np.ndarray, np.ndarray, float, str] | None:
    """Return the rows whose labels are doubtful, most doubtful first.

    By confident learning (Northcutt et al. 2021, doi 10.1613/jair.1.12125), in cleanlab, over the
    predictions of a logistic regression on frozen features. `groups` are numbers, [N]; the
    cross-validation never splits a group.

    Returns:
        Rows, P(pneumonia) of all images, its AUROC against the labels, and the name of the
        features; None if a class has too few patients.
    """
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not has_enough_groups(labels, groups):
        return None
    features, name = compute_features(images, config)
    probabilities = cross_validate(
        features,
        labels,
        groups,
        lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=500)),
    )
    both = np.stack([1 - probabilities, probabilities], axis=1)
    rows = find_label_issues(labels, both, return_indices_ranked_by="self_confidence", n_jobs=1)
    return rows, probabilities, float(roc_auc_score(labels, probabilities)), name


def compute_features(images: XrayPixels, config: FeatureConfig | None) -> tuple[np.ndarray, str]:
    """Return the principal components of frozen features, [N, COMPONENTS] float16, and their name.

    If the backbone's weights are not available, the gray levels replace the features, and the
    name says so.
    """
    from sklearn.decomposition import PCA

    name = config.features if config else PIXELS
    extract = _pixel_features
    if name != PIXELS:
        try:
            extract = _network_features(name, config.weights)
        except UserError:
            if config.weights:
                raise
            name = f"{PIXELS}, since the weights of {name} are not available"
    count = len(images)
    # Fitted on a sample, so that the features of all images need not be in memory.
    sample = np.sort(np.random.default_rng(0).permutation(count)[:2000])
    some = _in_batches(images, sample, extract)
    # As many components as images would fit noise.
    components = min(COMPONENTS, max(2, count // 10), *some.shape)
    reduction = PCA(components, random_state=0).fit(some)
    if count == len(sample):
        return reduction.transform(some).astype(np.float16), name
    reduced = _in_batches(
        images, np.arange(count), lambda pixels: reduction.transform(extract(pixels))
    )
    return reduced, name


def cross_validate(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, make_model: Callable[[], Any]
) -> np.ndarray:
    """Return P(pneumonia) of each row, from a model fitted without its group: float [N]."""
    from sklearn.model_selection import StratifiedGroupKFold

    generator = np.random.default_rng(0)
    probabilities = np.zeros(len(labels))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    kind = np.promote_types(features.dtype, np.float32)  # half precision is for storage only
    for fitted, held in folds.split(labels, labels, groups):
        if len(fitted) > MOST_ROWS:
            fitted = np.sort(generator.permutation(fitted)[:MOST_ROWS])
        model = make_model().fit(features[fitted].astype(kind), labels[fitted])
        for start in range(0, len(held), 10_000):
            rows = held[start : start + 10_000]
            probabilities[rows] = model.predict_proba(features[rows].astype(kind))[:, 1]
    return probabilities


def has_enough_groups(labels: np.ndarray, groups: np.ndarray) -> bool:
    """Return whether both classes have a group for each fold of a cross-validation."""
    return min(len(np.unique(groups[labels == label])) for label in range(len(LABELS))) >= FOLDS


def _in_batches(
    images: XrayPixels, rows: np.ndarray, extract: Callable[[Any], np.ndarray]
) -> np.ndarray:
    """Return the features of the images at `rows`: float16 [N, D]."""
    from tqdm.auto import tqdm

    starts = tqdm(
        range(0, len(rows), 32), desc="Features", unit="batch", leave=False, disable=len(rows) < 500
    )
    made = (extract(images.pixels(rows[start : start + 32])) for start in starts)
    return np.concatenate([batch.astype(np.float16) for batch in made])


def _pixel_features(pixels: Any) -> np.ndarray:
    """Return the gray levels of images at 32 x 32: [N, 1024]."""
    from torch.nn.functional import interpolate

    small = interpolate(pixels.float() / 255, (32, 32), mode="area")
    return small.flatten(1).numpy()


def _network_features(name: str, weights: str | None) -> Callable[[Any], np.ndarray]:
    """Return a function from uint8 images to features: the input of the backbone's last layer."""
    import torch

    from pneumonia_hf.models.backbones import fast_precision, head_of
    from pneumonia_hf.models.build import ModelConfig, build_model

    model, processor = build_model(ModelConfig(name, weights))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = model.eval().to(device)
    seen: list[Any] = []
    head_of(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    half = fast_precision() == "bf16"

    def extract(pixels: Any) -> np.ndarray:
        seen.clear()
        kind = torch.device(device).type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=half):
            model(pixel_values=normalise(pixels.to(device), processor))
        return seen[0].float().cpu().numpy()

    return extract
