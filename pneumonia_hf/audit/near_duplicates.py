"""Duplicates: images with equal pixels, and images of the same X-ray in other encodings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from pneumonia_hf.data.pixel_store import XrayPixels

# Recall and false pairs on planted copies of real X-rays are in docs/audit.md.
MOST_BITS = 66  # that differ, of the 256 of the perceptual hash
# 13.5 million pairs of different X-rays reach 0.9799.
LEAST_CORRELATION = 0.982
SIDE = 48  # pixels of the compared images
# The positions in which a pair is compared: degrees, shares of the sides, shifts by shares.
ROTATIONS, ZOOMS, SHIFTS = (-1.5, 0.0, 1.5), (0.97, 1.0, 1.03), (-0.02, -0.01, 0.0, 0.01, 0.02)
TILE = 256  # images whose hashes are compared with all others at a time
PAIRS = 16  # pairs compared at a time
PARTNERS = 50  # of an image at most; blank images would make too many pairs
MOST_PAIRS = 2.0  # compared for each image at most


def group_exact(pixels: np.ndarray) -> np.ndarray:
    """Return group numbers, int64 [N], of equal decoded pixels, given their hashes [N, 2]."""
    return np.unique(pixels, axis=0, return_inverse=True)[1].ravel()


def group_near(images: XrayPixels, exact: np.ndarray) -> tuple[np.ndarray, int]:
    """Return group numbers of images of one X-ray, int64 [N], and the number of omitted pairs.

    Pairs with similar perceptual hashes are confirmed by the correlation of their pixels. All
    pairs of hashes are compared, at a few nanoseconds each; of pixels, the MOST_PAIRS an image
    with the most similar hashes. Of each group of `exact`, by `group_exact`, one is compared.
    """
    from scipy.cluster.hierarchy import DisjointSet

    _, firsts, members = np.unique(exact, return_index=True, return_inverse=True)
    groups = DisjointSet(range(len(firsts)))
    similar = _similar_pairs(images.facts("phash")[firsts]).T
    left, unseen = max(100, int(MOST_PAIRS * len(firsts))), 0
    for start in range(0, len(similar), PAIRS):
        pairs = [
            pair for pair in similar[start : start + PAIRS].tolist() if not groups.connected(*pair)
        ]
        unseen += max(0, len(pairs) - left)
        pairs = pairs[:left]
        left -= len(pairs)
        if pairs:
            one, other = firsts[np.transpose(pairs)]
            found = correlate(images.pixels(one), images.pixels(other))
            for pair, correlation in zip(pairs, found, strict=True):
                if correlation >= LEAST_CORRELATION:
                    groups.merge(*pair)
    roots = np.array([groups[one] for one in range(len(firsts))], dtype=np.int64)
    return roots[members.ravel()], unseen


def correlate(ones: Tensor, others: Tensor) -> np.ndarray:
    """Return the correlation of each pair of images, [N, 1, H, W], in the best position: [N].

    It is Pearson's correlation over the area that both show.
    """
    import torch
    from torch.nn.functional import interpolate

    from pneumonia_hf.imaging.transforms import rotation, scaling, translation, warp

    positions = (torch.tensor(one) for one in (ROTATIONS, ZOOMS, SHIFTS, SHIFTS))
    degrees, zoom, right, down = torch.cartesian_prod(*positions).T
    matrices = rotation(degrees) @ scaling(zoom, zoom) @ translation(right * SIDE, down * SIDE)
    ones, others = (
        interpolate(one.float(), (SIDE, SIDE), mode="area").flatten(1) for one in (ones, others)
    )  # [N, SIDE**2]
    ones, others = (one - one.mean(1, keepdim=True) for one in (ones, others))
    # As channels: all images share the positions.
    grids = others.view(1, -1, SIDE, SIDE).expand(len(matrices), -1, -1, -1)
    moved = warp(grids, matrices).flatten(2)  # [P, N, SIDE**2]
    mask = warp(torch.ones(len(matrices), 1, SIDE, SIDE), matrices).flatten(1)
    mask = (mask > 0.99).float()  # [P, SIDE**2]
    moved.mul_(mask[:, None])
    area = mask.sum(1, keepdim=True)
    sums, moved_sums = mask @ ones.T, moved.sum(2)  # [P, N]
    variance = mask @ ones.square().T - sums.square() / area
    moved_variance = torch.linalg.vector_norm(moved, dim=2).square() - moved_sums.square() / area
    covariance = torch.einsum("pns,ns->pn", moved, ones) - sums * moved_sums / area
    found = covariance / (variance * moved_variance).clamp_min(1e-6).sqrt()
    return found.amax(0).numpy()


def _similar_pairs(hashes: np.ndarray) -> np.ndarray:
    """Return the indices of pairs with similar hashes, the most similar first: [2, P]."""

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
    found = np.concatenate([np.zeros((3, 0), np.int32), *found], axis=1)
    return found[:2, np.lexsort((found[1], found[0], found[2]))]
