"""BalancedSampler: the classes of each site equally often."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


def draws_balanced(imbalance: str, sites: np.ndarray) -> bool:
    """Return whether a sampler balances the classes, within each site, and not the loss."""
    return imbalance == "sampler" or (imbalance != "none" and len(np.unique(sites)) > 1)


class BalancedSampler(Sampler[int]):
    """Draw the classes of each site equally often, with replacement.

    A site is drawn in proportion to the square root of the number of its images: a small one is
    seen more often than its share, and yet not so often that single images are learned by heart.
    An epoch is as long as the data. The draws follow from seed and epoch: torch's
    WeightedRandomSampler depends on the state of a generator, which differs after a run is resumed
    within an epoch.
    """

    def __init__(self, labels: np.ndarray, sites: np.ndarray, seed: int) -> None:
        """Take the label and the site, a number, of each image: [N]."""
        self.rows, shares = [], []
        for site in np.unique(sites):
            classes = np.unique(labels[sites == site])
            for label in classes:
                self.rows.append(
                    torch.from_numpy(np.flatnonzero((sites == site) & (labels == label)))
                )
                shares.append(np.sqrt(np.sum(sites == site)) / len(classes))
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
