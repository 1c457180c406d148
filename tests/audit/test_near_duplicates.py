"""Copies of one X-ray are found in other encodings and positions; different X-rays are not."""

import imagehash
import numpy as np
import pytest
import torch
from helpers import draw_xray
from PIL import Image, ImageEnhance

from pneumonia_hf.audit.near_duplicates import (
    LEAST_CORRELATION,
    MOST_BITS,
    PARTNERS,
    _similar_pairs,
    correlate,
    group_exact,
    group_near,
)


class Images:
    """Images in memory, as the audit sees them."""

    def __init__(self, images: list[Image.Image], hashes: np.ndarray | None = None) -> None:
        self._pixels = np.stack([np.asarray(one.resize((96, 96)))[None] for one in images])
        bits = [np.packbits(imagehash.phash(one, hash_size=16).hash) for one in images]
        self._hashes = np.stack(bits).view("<u8") if hashes is None else hashes

    def facts(self, _: str) -> np.ndarray:
        return self._hashes

    def pixels(self, indices) -> torch.Tensor:
        return torch.from_numpy(self._pixels[np.asarray(indices)])


def draw(seed: int) -> Image.Image:
    """Draw an X-ray with its own texture, so that no two are similar."""
    coarse = np.random.default_rng(seed).uniform(60, 200, (9, 9)).astype(np.uint8)
    texture = Image.fromarray(coarse).resize((160, 140), Image.Resampling.BICUBIC)
    return Image.blend(draw_xray(seed, bool(seed % 2), (160, 140)), texture, 0.5)


ORIGINALS = [draw(seed) for seed in range(12)]


def crop(image: Image.Image, left: float, top: float, right: float, low: float) -> Image.Image:
    """Cut off these shares of the sides."""
    x, y = image.size
    box = (x * left, y * top, x * (1 - right), y * (1 - low))
    return image.resize(image.size, Image.Resampling.BICUBIC, box)


def turn(image: Image.Image, degrees: float, shift: tuple[int, int] = (0, 0)) -> Image.Image:
    """Rotate and shift; the drawings have no black border, so neither has the result."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, translate=shift, fillcolor=130)


def count_found(change) -> int:
    """Return how many of the changed copies are grouped with their original, and nothing else."""
    images = ORIGINALS + [change(one) for one in ORIGINALS]
    groups, unseen = group_near(Images(images), np.arange(len(images)))
    found = int(np.equal(*np.split(groups, 2)).sum())
    assert unseen == 0 and len(np.unique(groups)) == len(images) - found
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((300, 200)),
        lambda image: ImageEnhance.Contrast(image).enhance(1.3),
        lambda image: crop(image, 0.02, 0.02, 0.02, 0.02),
        lambda image: crop(image, 0.02, 0.02, 0, 0),
        lambda image: turn(image, 1),
        lambda image: turn(image, -2),
        lambda image: turn(image, 0, (2, -2)),
        lambda image: crop(turn(image, 1), 0.02, 0.02, 0.02, 0.02),
    ],
    ids="resized contrast cropped corner rotated rotated-2 shifted rotated-cropped".split(),
)
def test_copies_in_the_documented_range_are_found(change):
    assert count_found(change) >= 11  # of 12


@pytest.mark.parametrize(
    "change",
    [
        lambda image: crop(image, 0.08, 0.08, 0.08, 0.08),
        lambda image: turn(image, 9),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ],
    ids=["cropped", "rotated", "mirrored"],
)
def test_copies_far_beyond_that_range_are_not_found(change):
    assert count_found(change) == 0


def test_correlation_is_the_highest_over_the_positions_and_that_of_pearson():
    pixels = Images(ORIGINALS).pixels(range(12))
    assert correlate(pixels, pixels) == pytest.approx(1, abs=1e-5)
    moved = Images([turn(one, 1.5) for one in ORIGINALS])
    assert (correlate(pixels, moved.pixels(range(12))) > LEAST_CORRELATION).all()
    others = pixels.roll(1, dims=0)
    small = (
        torch.nn.functional.interpolate(one.float(), (48, 48), mode="area").flatten(1).numpy()
        for one in (pixels, others)
    )
    plain = np.array([np.corrcoef(*pair)[0, 1] for pair in zip(*small, strict=True)])
    found = correlate(pixels, others)
    assert (found >= plain - 1e-5).all() and (found > plain + 0.001).any()
    assert (found < 0.9).all()


def test_images_without_contrast_correlate_with_nothing():
    blank = torch.full((2, 1, 96, 96), 90, dtype=torch.uint8)
    assert correlate(blank, Images(ORIGINALS).pixels([0, 1])).tolist() == [0, 0]
    assert correlate(blank, blank).tolist() == [0, 0]


def test_pairs_beyond_the_allowed_number_are_counted():
    images = [draw(seed) for seed in range(20)]
    images = Images(images, np.zeros((20, 4), np.uint64))  # 190 pairs with equal hashes
    groups, unseen = group_near(images, np.arange(20))
    assert len(np.unique(groups)) == 20 and unseen == 190 - 100


def test_images_with_equal_pixels_are_compared_once_and_stay_together():
    images = [*ORIGINALS[:3], ORIGINALS[0], turn(ORIGINALS[0], 1)]
    exact = group_exact(np.array([[0, 0], [1, 0], [2, 0], [0, 0], [3, 0]]))
    groups, _ = group_near(Images(images), exact)
    assert groups[0] == groups[3] == groups[4] and len(np.unique(groups)) == 3


def test_number_of_pairs_is_bounded_if_many_images_share_a_hash():
    hashes = np.zeros((3000, 4), np.uint64)
    ones, others = _similar_pairs(hashes)
    assert len(ones) <= 3000 * PARTNERS
    assert np.all(ones < others)


def test_pairs_are_those_with_at_most_the_allowed_bits_the_most_similar_first():
    hashes = np.random.default_rng(0).integers(0, 2**64, (600, 4), dtype=np.uint64)
    hashes[500:] = hashes[:100]
    for row in range(100):
        hashes[500 + row, 0] ^= np.uint64(2 ** (row % 64) - 1)  # row % 64 bits
    hashes[599, 1:] = ~hashes[599, 1:]
    ones, others = _similar_pairs(hashes)
    assert MOST_BITS >= 64
    assert sorted(zip(ones.tolist(), others.tolist(), strict=True)) == [
        (row, 500 + row) for row in range(99)
    ]
    bits = np.bitwise_count(hashes[ones] ^ hashes[others]).sum(1)
    assert (np.diff(bits.astype(int)) >= 0).all()
