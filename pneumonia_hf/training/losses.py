"""The training loss: cross-entropy, its variants for imbalanced classes, and distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.activation_map import to_log_odds

if TYPE_CHECKING:
    from pneumonia_hf.training.arguments import XrayTrainingArguments


# A position counts as an opacity from these log odds on, and not from 0: the score is the mean of
# the map, and must be positive although an opacity covers a fifth of an image.
BOX_OFFSET = 4.0
BOX_BALANCE = 3.0  # weight of the positions in a box, which are few


@dataclass(frozen=True)
class Targets:
    """The targets of a batch: shares of the classes, and optionally a teacher's logits."""

    classes: Tensor  # [N, C], summing to 1, or 0 without a label; a mixed image has shares
    teacher_logits: Tensor | None = None  # [N, 2]
    boxes: BoxTargets | None = None


@dataclass(frozen=True)
class BoxTargets:
    """Where the opacities of a batch are, for the loss on the activation map."""

    masks: Tensor  # [N, 1, H, W] in 0..1: what lies in a radiologist's box
    known: Tensor  # bool [N]: whether an opacity outside of the masks can be excluded
    read_map: Callable[[], Tensor]  # log odds of each position after the forward pass: [N, h, w]


def weigh_classes(labels: np.ndarray) -> Tensor:
    """Return the class weights over `labels` that give PNEUMONIA a half, and the others the rest.

    float32 [C]. So probabilities are for the prevalence that calibration assumes.
    """
    counts = np.bincount(labels, minlength=len(LABELS))
    shares = np.full(len(counts), 0.5 / (len(counts) - 1))
    shares[1] = 0.5
    return torch.tensor(len(labels) * shares / counts, dtype=torch.float32)


def to_two_classes(logits: Tensor, index: int) -> Tensor:
    """Return logits of all classes but `index`, and of that: [N, C] -> [N, 2]."""
    log_odds = to_log_odds(logits, index)
    return torch.stack([torch.zeros_like(log_odds), log_odds], dim=1)


class XrayLoss:
    """Cross-entropy over shares of classes: weighted, smoothed, focal, distilled as configured.

    The focal factor of a class is (1 - p)^gamma (Lin et al. 2017). The teacher's loss is
    T^2 KL(teacher || student) at the temperature T (Hinton et al. 2015). The loss of the boxes is
    the mean cross-entropy of the positions of the activation map, with weight BOX_BALANCE in a box.
    """

    def __init__(
        self, labels: np.ndarray, arguments: XrayTrainingArguments, drawn_balanced: bool = False
    ) -> None:
        """Take the training `labels` [N], the loss settings, and whether a sampler balances."""
        weighted = arguments.imbalance in ("weights", "focal") and not drawn_balanced
        self.weights = weigh_classes(labels) if weighted else None
        self.gamma = arguments.focal_gamma if arguments.imbalance == "focal" else 0.0
        self.smoothing = arguments.label_smoothing_factor
        self.teacher_share = arguments.distil_weight if arguments.teacher else 0.0
        self.temperature = arguments.distil_temperature
        self.box_weight = arguments.box_weight

    def __call__(
        self, outputs: Any, labels: Tensor | Targets, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the summed loss of a batch, divided by the number of images of the whole step.

        Accumulated steps, and several processes, thus equal one large batch.
        """
        logits = outputs.logits.float()
        if not isinstance(labels, Targets):
            labels = Targets(nn.functional.one_hot(labels, logits.shape[1]).float())
        losses = self._of_classes(logits, labels.classes)
        if labels.teacher_logits is not None:
            of_teacher = self._of_teacher(logits, labels.teacher_logits.float())
            losses = (1 - self.teacher_share) * losses + self.teacher_share * of_teacher
        if labels.boxes is not None:
            losses = losses + self.box_weight * self._of_boxes(labels.boxes)
        return losses.sum() / (len(logits) if num_items_in_batch is None else num_items_in_batch)

    def _of_classes(self, logits: Tensor, classes: Tensor) -> Tensor:
        smooth = classes * (1 - self.smoothing) + self.smoothing / classes.shape[1]
        log_p = nn.functional.log_softmax(logits, dim=1)
        if self.gamma:
            # Not below 1e-6: at 0, a power below 1 has no gradient.
            smooth = smooth * (1 - log_p.exp()).clamp_min(1e-6) ** self.gamma
        weights = classes.sum(dim=1)  # 0 without a label
        if self.weights is not None:
            weights = classes @ self.weights.to(classes.device)
        return weights * -(smooth * log_p).sum(dim=1)

    def _of_boxes(self, boxes: BoxTargets) -> Tensor:
        log_odds = boxes.read_map().float() - BOX_OFFSET
        shares = nn.functional.adaptive_avg_pool2d(boxes.masks, log_odds.shape[-2:])[:, 0]
        losses = nn.functional.binary_cross_entropy_with_logits(
            log_odds, shares, 1 + (BOX_BALANCE - 1) * (shares > 0.5), reduction="none"
        )
        return losses.mean((1, 2)) * boxes.known

    def _of_teacher(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        logits = to_two_classes(logits, 1)
        ours = nn.functional.log_softmax(logits / self.temperature, dim=1)
        theirs = nn.functional.log_softmax(teacher_logits / self.temperature, dim=1)
        distance = nn.functional.kl_div(ours, theirs, reduction="none", log_target=True)
        return self.temperature**2 * distance.sum(dim=1)
