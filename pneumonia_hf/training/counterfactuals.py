"""Validation on plain images and on their counterfactual copies: the criterion robust_auroc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.perturbations import COUNTERFACTUALS, ROBUST, perturb
from pneumonia_hf.models.activation_map import to_log_odds
from pneumonia_hf.statistics.log_odds import to_probability
from pneumonia_hf.statistics.metrics import auroc
from pneumonia_hf.training.losses import weigh_classes
from pneumonia_hf.training.trainer import DIVERGED

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction

    from pneumonia_hf.data.pixel_store import XrayPixels

MOST_IMAGES = 2000  # of each kind of copy; they are kept in memory


class CounterfactualPixels:
    """Validation images, followed by their copies: a torch dataset like XrayPixels."""

    def __init__(self, plain: XrayPixels, seed: int = 13) -> None:
        """Take the plain images, with both classes; the copies follow from `seed`."""
        self.plain = plain
        rows = np.random.default_rng(seed).permutation(len(plain))[:MOST_IMAGES]
        self.rows = np.sort(rows)  # of the plain images that have copies
        pixels, labels = plain.pixels(self.rows).numpy(), plain.labels[self.rows]
        copies = [perturb(pixels, labels, name, at, seed) for name, at in COUNTERFACTUALS]
        self.copies = np.concatenate(copies)
        self.labels = np.concatenate([plain.labels, np.tile(labels, len(COUNTERFACTUALS))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a whole batch, as torch's loaders request it."""
        import torch

        indices = np.asarray(indices)
        is_plain = indices < len(self.plain)
        copies = torch.from_numpy(self.copies[indices[~is_plain] - len(self.plain)])
        pixels = torch.empty(len(indices), *copies.shape[1:], dtype=torch.uint8)
        pixels[torch.from_numpy(~is_plain)] = copies
        if is_plain.any():
            pixels[torch.from_numpy(is_plain)] = self.plain.pixels(indices[is_plain])
        return {"pixel_values": pixels, "labels": torch.from_numpy(self.labels[indices])}

    def score(self, probabilities: np.ndarray) -> dict[str, float]:
        """Return the AUROC of each kind of copies, and the mean with that of the plain images.

        `probabilities` are of all images and copies, in the order of this dataset.
        """
        plain, copies = np.split(probabilities, [len(self.plain)])
        areas = {"plain": auroc(self.plain.labels, plain, 0.5)}
        labels = self.plain.labels[self.rows]
        by_kind = copies.reshape(len(COUNTERFACTUALS), -1)
        for (name, level), scores in zip(COUNTERFACTUALS, by_kind, strict=True):
            areas[f"{name}_{level:g}"] = auroc(labels, scores, 0.5)
        found = {f"auroc_{name}": value for name, value in areas.items() if name != "plain"}
        return found | {ROBUST: float(np.mean(list(areas.values())))}


def compute_validation_metrics(
    prediction: EvalPrediction, validation: XrayPixels | CounterfactualPixels
) -> dict[str, float]:
    """Return all METRICS, the log loss with balanced classes, and the scores of copies if any.

    Raises:
        UserError: the predictions are not those of all images in their order, or are not finite.
    """
    from pneumonia_hf.evaluation.hf_metric import XrayMetric

    if not np.array_equal(prediction.label_ids, validation.labels):
        raise UserError(
            "The Trainer has scored other images than the validation split, or in another order; "
            "leave out what changes how validation images are loaded."
        )
    logits = prediction.predictions.astype(np.float64)
    if not np.isfinite(logits).all():
        raise UserError(DIVERGED)
    labels, log_odds = prediction.label_ids, to_log_odds(torch.from_numpy(logits)).numpy()
    copies = {}
    if isinstance(validation, CounterfactualPixels):
        copies = validation.score(to_probability(log_odds))
        labels, log_odds = (of[: len(validation.plain)] for of in (labels, log_odds))
    losses = np.logaddexp(0, np.where(labels == 1, -log_odds, log_odds))
    # One module for all: `evaluate.combine` would write the predictions once for each metric.
    probabilities = to_probability(log_odds)
    metrics = XrayMetric().compute(predictions=probabilities, references=labels, threshold=0.5)
    weights = weigh_classes(labels).numpy()[labels]
    return metrics | copies | {"loss": float(np.mean(losses * weights))}
