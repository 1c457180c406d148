"""The training loss: cross-entropy with its remedies for imbalance, and what a teacher says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from pneumonia_hf.training.arguments import XrayTrainingArguments


@dataclass(frozen=True)
class Targets:
    """What a batch is taught: shares of the classes, and maybe what a teacher says of it."""

    classes: Tensor  # [N, 2], summing to 1; mixed images have a share of each
    teacher_logits: Tensor | None = None  # [N, 2]


def weigh_classes(labels: np.ndarray) -> Tensor:
    """Return the weight of each class that makes both count alike over `labels`: float32 [2]."""
    counts = np.bincount(labels, minlength=len(LABELS))
    return torch.tensor(len(labels) / (len(LABELS) * counts), dtype=torch.float32)


class XrayLoss:
    """Cross-entropy over shares of classes: weighted, smoothed, focal, distilled as told.

    The focal factor is that of Lin et al. 2017: what a class says counts (1 - p)^gamma. The
    teacher's part is T^2 KL(teacher || student) at the temperature T (Hinton et al. 2015).
    """

    def __init__(self, labels: np.ndarray, arguments: XrayTrainingArguments) -> None:
        """Take the training `labels` [N], and what `arguments` say of the loss."""
        weighted = arguments.imbalance in ("weights", "focal")
        self.weights = weigh_classes(labels) if weighted else torch.ones(len(LABELS))
        self.gamma = arguments.focal_gamma if arguments.imbalance == "focal" else 0.0
        self.smoothing = arguments.label_smoothing_factor
        self.teacher_share = arguments.distil_weight if arguments.teacher else 0.0
        self.temperature = arguments.distil_temperature

    def __call__(
        self, outputs: Any, labels: Tensor | Targets, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss of a batch: its images' losses, summed and divided.

        Divided by the images of the whole step, so that accumulated steps, and several
        processes, equal a large batch.
        """
        logits = outputs.logits.float()
        if not isinstance(labels, Targets):
            labels = Targets(nn.functional.one_hot(labels, len(LABELS)).float())
        losses = self._of_classes(logits, labels.classes)
        if labels.teacher_logits is not None:
            summary = self._of_teacher(logits, labels.teacher_logits.float())
            losses = (1 - self.teacher_share) * losses + self.teacher_share * summary
        count = len(logits) if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / count

    def _of_classes(self, logits: Tensor, classes: Tensor) -> Tensor:
        smooth = classes * (1 - self.smoothing) + self.smoothing / classes.shape[1]
        log_p = nn.functional.log_softmax(logits, dim=1)
        if self.gamma:
            # Not below a millionth: at 0 a power below 1 has no gradient.
            smooth = smooth * (1 - log_p.exp()).clamp_min(1e-6) ** self.gamma
        return (classes @ self.weights.to(classes.device)) * -(smooth * log_p).sum(dim=1)

    def _of_teacher(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        ours = nn.functional.log_softmax(logits / self.temperature, dim=1)
        theirs = nn.functional.log_softmax(teacher_logits / self.temperature, dim=1)
        distance = nn.functional.kl_div(ours, theirs, reduction="none", log_target=True)
        return self.temperature**2 * distance.sum(dim=1)
