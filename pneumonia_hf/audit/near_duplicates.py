"""Images that are there twice: the same pixels, or the same X-ray stored in another way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from pneumonia_hf.data.pixel_store import XrayPixels

# Of 256 bits of the perceptual hash. Copies of 60 real X-rays made by another compression, size,
# exposure, blur or noise differed by up to 34; a crop of 2%, a turn of 1 degree or a shift of 2%
# by up to 56, in 19 of 20. Different X-rays mostly differ by 80 to 160.
MOST_BITS = 60
# Correlation of images of 64 x 64. The most alike of 5,216 different X-rays reach 0.981 after
# the overlay, all of those copies 0.986 and more.
LEAST_CORRELATION = 0.985
SIDE = 64  # pixels of the images that are compared
TILE = 256  # images against all others at a time
PAIRS = 64  # pairs that are laid over each other at a time
PARTNERS = 50  # of an image at most; blank ones would make pairs without end
OVERLAYS = 1.0  # for each image at most; among 5,216 X-rays there were 0.14
STEPS = 25  # of the search for the best overlay, in small and then in large
WORTH_A_LOOK = 0.97  # correlation in small from which the large images are compared


def group_exact(pixels: np.ndarray) -> np.ndarray:
    """Return a group number for each image; equal decoded pixels have the same: int64 [N].

    Args:
        pixels: uint64 [N, 2], the hashes of the decoded pixels.
    """
    order = np.lexsort((pixels[:, 1], pixels[:, 0]))
    new = np.any(pixels[order][1:] != pixels[order][:-1], axis=1)
    groups = np.empty(len(pixels), np.int64)
    groups[order] = np.concatenate([[0], np.cumsum(new)]) if len(pixels) else 0
    return groups


def group_near(split: XrayPixels, exact: np.ndarray) -> tuple[np.ndarray, int]:
    """Return a group number for each image, int64 [N], and how many pairs were left unseen.

    Copies are found that differ by compression, size, exposure, blur or noise, and by a crop or
    shift of up to about 2% or a turn of up to about 2 degrees.

    Pairs of similar perceptual hashes are confirmed by the correlation of their pixels, if need
    be after one was laid over the other by a small shift, turn and zoom. All pairs of hashes are
    compared, at a few nanoseconds each; the most alike come first, and overlays end when there
    were OVERLAYS for each image.

    Args:
        split: the images.
        exact: their groups by `group_exact`, one of each is compared.
    """
    _, firsts, members = np.unique(exact, return_index=True, return_inverse=True)
    xrays = _Groups(len(firsts))
    ones, others = _similar_pairs(split.facts("phash")[firsts])
    overlays, unseen = max(100, int(OVERLAYS * len(firsts))), 0
    for start in range(0, len(ones), PAIRS):
        a, b = xrays.apart(ones[start : start + PAIRS], others[start : start + PAIRS])
        if not len(a):
            continue
        images = split.pixels(firsts[a]), split.pixels(firsts[b])
        correlations = correlate(*images)
        xrays.join(a, b, correlations >= LEAST_CORRELATION)
        doubtful = np.flatnonzero(correlations < LEAST_CORRELATION)
        unseen += max(0, len(doubtful) - overlays)
        doubtful = doubtful[:overlays]
        if len(doubtful):
            overlays -= len(doubtful)
            found = overlay(*(one[doubtful] for one in images))
            xrays.join(a[doubtful], b[doubtful], found >= LEAST_CORRELATION)
    return xrays.numbers()[members.ravel()], unseen


class _Groups:
    """Things that are joined two by two, and the groups that come of it."""

    def __init__(self, count: int) -> None:
        self.parents = list(range(count))

    def root(self, one: int) -> int:
        parents = self.parents
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        return one

    def apart(self, ones: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs that are not in one group yet."""
        pairs = zip(ones.tolist(), others.tolist(), strict=True)
        apart = np.array([self.root(a) != self.root(b) for a, b in pairs], dtype=bool)
        return ones[apart], others[apart]

    def join(self, ones: np.ndarray, others: np.ndarray, which: np.ndarray) -> None:
        for a, b in zip(ones[which].tolist(), others[which].tolist(), strict=True):
            self.parents[self.root(a)] = self.root(b)

    def numbers(self) -> np.ndarray:
        return np.array([self.root(one) for one in range(len(self.parents))], dtype=np.int64)


def correlate(ones: Tensor, others: Tensor) -> np.ndarray:
    """Return the correlation of each pair of images as they lie: float [N]."""
    import torch

    return _correlation(_shrink(ones, SIDE), _shrink(others, SIDE), torch.ones(1)).numpy().copy()


def overlay(ones: Tensor, others: Tensor) -> np.ndarray:
    """Return the correlation of each pair where the second is laid over the first: float [N].

    Shift, turn and zoom of each pair are found by gradient ascent on the correlation over the
    part that both show. Pairs that stay far apart in small are not looked at in large.
    """
    import torch

    moves = torch.zeros(len(ones), 5)  # turn, two zooms, two shifts
    best, moves = _search(_shrink(ones, SIDE // 2), _shrink(others, SIDE // 2), moves)
    close = best >= WORTH_A_LOOK
    if close.any():
        best[close], _ = _search(
            _shrink(ones[close], SIDE), _shrink(others[close], SIDE), moves[close]
        )
    return best.clamp(max=1.0).where(close, best.clamp(max=WORTH_A_LOOK)).numpy()


def _search(ones: Tensor, others: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best correlation of each pair, and the moves that give it."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    shape = list(ones.shape)
    inside = torch.ones(shape)
    best, found = torch.full((len(ones),), -1.0), moves.clone()
    moves = moves.clone().requires_grad_()
    search = torch.optim.Adam([moves], lr=0.01)
    with torch.enable_grad():
        for _ in range(STEPS):
            turn, zoom, shift = moves[:, 0], moves[:, 1:3] + 1, moves[:, 3:]
            cosine, sine = torch.cos(turn), torch.sin(turn)
            rows = [
                torch.stack([zoom[:, 0] * cosine, -zoom[:, 1] * sine, shift[:, 0]], 1),
                torch.stack([zoom[:, 0] * sine, zoom[:, 1] * cosine, shift[:, 1]], 1),
            ]
            grid = affine_grid(torch.stack(rows, 1), shape, align_corners=False)
            moved = grid_sample(others, grid, align_corners=False)
            mask = (grid_sample(inside, grid.detach(), align_corners=False) > 0.99).float()
            correlation = _correlation(ones, moved, mask)
            # An overlay that leaves little in common proves nothing.
            better = (mask.mean((1, 2, 3)) > 0.8) & (correlation.detach() > best)
            best = torch.where(better, correlation.detach(), best)
            found = torch.where(better[:, None], moves.detach(), found)
            search.zero_grad()
            (-correlation.sum()).backward()
            search.step()
    return best, found


def _shrink(pixels: Tensor, side: int) -> Tensor:
    from torch.nn.functional import interpolate

    return interpolate(pixels.float(), (side, side), mode="area")


def _correlation(ones: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """Return Pearson's correlation of images [N, 1, H, W] where `mask` is 1: [N]."""
    mask = mask.expand_as(ones)
    weight = mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
    ones = (ones - (ones * mask).sum((1, 2, 3), keepdim=True) / weight) * mask
    others = (others - (others * mask).sum((1, 2, 3), keepdim=True) / weight) * mask
    spread = (ones.square().sum((1, 2, 3)) * others.square().sum((1, 2, 3))).clamp(min=1e-6).sqrt()
    return (ones * others).sum((1, 2, 3)) / spread


def _similar_pairs(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of pairs whose hashes differ little, the most alike first: int64 [P]."""

    def compare(start: int) -> np.ndarray:
        tile = hashes[start : start + TILE]
        found = []
        for from_ in range(start, len(hashes), 8 * TILE):
            others = hashes[from_ : from_ + 8 * TILE]
            bits = np.zeros((len(tile), len(others)), np.uint16)
            for word in range(hashes.shape[1]):
                bits += np.bitwise_count(tile[:, word][:, None] ^ others[:, word][None])
            rows, columns = np.nonzero(bits <= MOST_BITS)
            above = rows + start < columns + from_
            rows, columns = rows[above], columns[above]
            found.append(np.stack([rows + start, columns + from_, bits[rows, columns]]))
        pairs = np.concatenate(found, axis=1).astype(np.int32)
        # The partners of each image that are most like it.
        pairs = pairs[:, np.lexsort((pairs[1], pairs[2], pairs[0]))]
        firsts = np.searchsorted(pairs[0], pairs[0])
        return pairs[:, np.arange(pairs.shape[1]) - firsts < PARTNERS]

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(compare, range(0, len(hashes), TILE)))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ones, others, bits = np.concatenate(found, axis=1)
    order = np.lexsort((others, ones, bits))
    return ones[order].astype(np.int64), others[order].astype(np.int64)
