"""Samplers: the classes of each source equally often, and no batch of a single image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.utils.data import BatchSampler, Sampler

if TYPE_CHECKING:
    from pneumonia_hf.training.arguments import XrayTrainingArguments


def draws_balanced(arguments: XrayTrainingArguments, sites: np.ndarray) -> bool:
    """Return whether a sampler balances the classes, within each site, and not the loss."""
    if arguments.imbalance == "sampler" or arguments.balance:
        return True
    return arguments.imbalance != "none" and len(np.unique(sites)) > 1


class BalancedSampler(Sampler[int]):
    """Draw the classes of each site equally often, with replacement.

    With `cells`, such as the views, each class of a site is drawn with the cells in the shares that
    they have in the site: so they do not tell the class.

    A site is drawn in proportion to the square root of the number of its images: a small one is
    seen more often than its share, and yet not so often that single images are learned by heart.
    An epoch is as long as the data. The draws follow from seed and epoch: torch's
    WeightedRandomSampler depends on the state of a generator, which differs after a run is resumed
    within an epoch.
    """

    def __init__(
        self, labels: np.ndarray, sites: np.ndarray, seed: int, cells: np.ndarray | None = None
    ) -> None:
        """Take the label, the site and the cell, numbers, of each image: [N]."""
        cells = np.zeros(len(labels), int) if cells is None else cells
        self.rows, shares = [], []
        for site in np.unique(sites):
            inside = sites == site
            classes = np.unique(labels[inside])
            for label in classes:
                of_class = inside & (labels == label)
                present = np.unique(cells[of_class])
                counts = np.array([np.sum(inside & (cells == cell)) for cell in present])
                for cell, share in zip(present, counts / counts.sum(), strict=True):
                    self.rows.append(torch.from_numpy(np.flatnonzero(of_class & (cells == cell))))
                    shares.append(np.sqrt(inside.sum()) / len(classes) * share)
        self.shares = torch.tensor(shares, dtype=torch.float64)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the draws; accelerate calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        groups = torch.multinomial(self.shares, len(self), replacement=True, generator=generator)
        which = torch.rand(len(self), generator=generator)
        for group, share in zip(groups.tolist(), which.tolist(), strict=True):
            rows = self.rows[group]
            yield int(rows[int(share * len(rows))])


class MergingBatchSampler(BatchSampler):
    """Batches of `batch_size`; a last one of a single image joins the one before.

    That is for batch norms whose input is 1 x 1: of one image they have one value a channel, from
    which there is no variance.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int) -> None:
        """Take a sampler of two indices or more, and a batch size of 2 or more."""
        super().__init__(sampler, batch_size, drop_last=False)

    def __len__(self) -> int:
        return super().__len__() - (len(self.sampler) % self.batch_size == 1)

    def __iter__(self) -> Iterator[list[int]]:
        before: list[int] = []
        for batch in super().__iter__():
            if before and len(batch) > 1:
                yield before
                before = []
            before = [*before, *batch]
        yield before


def needs_two_images(model: nn.Module, norms: Sequence[nn.Module], size: dict[str, int]) -> bool:
    """Return whether a batch norm of `norms` gets one value a channel of an image of `size`.

    The model runs once on a blank image, in evaluation mode, so that no statistic changes.
    """
    counts: list[int] = []
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0][0, 0].numel()))
        for norm in norms
    ]
    was_training = model.training
    blank = torch.zeros(1, 3, size["height"], size["width"])
    try:
        with torch.no_grad():
            model.eval()(pixel_values=blank.to(next(model.parameters())))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return 1 in counts
