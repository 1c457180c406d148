"""Duplicates: images with equal pixels, and images of the same X-ray in other encodings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from pneumonia_hf.data.pixel_store import XrayPixels

# Of 256 bits of the perceptual hash. Copies of 60 real X-rays with another compression, size,
# exposure, blur or noise differed by up to 34; with a crop of 2%, a rotation of 1 degree or a
# shift of 2% by up to 56, in 19 of 20. Different X-rays mostly differ by 80 to 160.
MOST_BITS = 60
# Correlation of images of 64 x 64. After registration the most similar of 5,216 different X-rays
# reach 0.981; all of those copies reach 0.986 or more.
LEAST_CORRELATION = 0.985
SIDE = 64  # pixels of the compared images
TILE = 256  # images whose hashes are compared with all others at a time
PAIRS = 64  # pairs compared at a time
PARTNERS = 50  # of an image at most; blank images would make too many pairs
OVERLAYS = 1.0  # registrations an image at most; among 5,216 X-rays there were 0.14
STEPS = 25  # of the registration, at half the side and then at the full side
CANDIDATE = 0.97  # correlation at half the side from which the full side is compared


def group_exact(pixels: np.ndarray) -> np.ndarray:
    """Return group numbers, int64 [N], of equal decoded pixels, given their hashes [N, 2]."""
    return np.unique(pixels, axis=0, return_inverse=True)[1].ravel()


def group_near(images: XrayPixels, exact: np.ndarray) -> tuple[np.ndarray, int]:
    """Return group numbers of images of one X-ray, int64 [N], and the number of omitted pairs.

    Finds copies that differ in compression, size, exposure, blur or noise, by a crop or shift of
    up to about 2%, or by a rotation of up to about 2 degrees.

    Pairs with similar perceptual hashes are confirmed by the correlation of their pixels, if
    necessary after registration by a small shift, rotation and zoom. All pairs of hashes are
    compared, at a few nanoseconds each; the most similar come first, and registrations end at
    OVERLAYS an image. Of each group of `exact`, by `group_exact`, one image is compared.
    """
    from scipy.cluster.hierarchy import DisjointSet

    _, firsts, members = np.unique(exact, return_index=True, return_inverse=True)
    groups = DisjointSet(range(len(firsts)))

    def join(ones: np.ndarray, others: np.ndarray, same: np.ndarray) -> None:
        for one, other in zip(ones[same].tolist(), others[same].tolist(), strict=True):
            groups.merge(one, other)

    ones, others = _similar_pairs(images.facts("phash")[firsts])
    overlays, unseen = max(100, int(OVERLAYS * len(firsts))), 0
    for start in range(0, len(ones), PAIRS):
        a, b = ones[start : start + PAIRS], others[start : start + PAIRS]
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        separate = np.array([not groups.connected(*pair) for pair in pairs], dtype=bool)
        a, b = a[separate], b[separate]
        if not len(a):
            continue
        pixels = images.pixels(firsts[a]), images.pixels(firsts[b])
        correlations = correlate(*pixels)
        join(a, b, correlations >= LEAST_CORRELATION)
        doubtful = np.flatnonzero(correlations < LEAST_CORRELATION)
        unseen += max(0, len(doubtful) - overlays)
        doubtful = doubtful[:overlays]
        if len(doubtful):
            overlays -= len(doubtful)
            found = overlay(*(one[doubtful] for one in pixels))
            join(a[doubtful], b[doubtful], found >= LEAST_CORRELATION)
    roots = np.array([groups[one] for one in range(len(firsts))], dtype=np.int64)
    return roots[members.ravel()], unseen


def correlate(ones: Tensor, others: Tensor) -> np.ndarray:
    """Return the correlation of each pair of images without registration: float [N]."""
    import torch

    return _correlation(_shrink(ones, SIDE), _shrink(others, SIDE), torch.ones(1)).numpy().copy()


def overlay(ones: Tensor, others: Tensor) -> np.ndarray:
    """Return the correlation of each pair after registration of the second: float [N].

    Gradient ascent finds the shift, rotation and zoom with the highest correlation over the area
    that both images show. Pairs below CANDIDATE at half the side skip the full side.
    """
    import torch

    moves = torch.zeros(len(ones), 5)  # rotation, two zooms, two shifts
    best, moves = _search(_shrink(ones, SIDE // 2), _shrink(others, SIDE // 2), moves)
    close = best >= CANDIDATE
    if close.any():
        best[close], _ = _search(
            _shrink(ones[close], SIDE), _shrink(others[close], SIDE), moves[close]
        )
    return best.clamp(max=1.0).where(close, best.clamp(max=CANDIDATE)).numpy()


def _search(ones: Tensor, others: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best correlation of each pair, and its rotation, zooms and shifts."""
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
            # A small common area proves nothing.
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
    """Return the indices of pairs with similar hashes, the most similar first: int64 [P]."""

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
        # The most similar partners of each image.
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
