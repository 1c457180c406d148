"""Compute FACTS: the statistics of each full-size image that the cache keeps."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.reasons import Reason

if TYPE_CHECKING:
    from pneumonia_hf.imaging.xray import Xray

HEADER_DOUBTS = (Reason.MODALITY, Reason.VIEW, Reason.BITS, Reason.WINDOW)
SEGMENTS = 8  # per side of the border
BORDER = 0.04  # width of the border strips, as a share of the image's side
# Shares are of all pixels of the full-size image.
FACTS = np.dtype(
    [
        ("content", "<u8"),  # hash of the file's bytes
        ("pixels", "<u8", 2),  # hash of the decoded image
        ("phash", "<u8", 4),  # perceptual hash, 256 bits
        ("width", "<u4"),
        ("height", "<u4"),
        ("mean", "<f4"),  # of the gray levels, 0..255
        ("std", "<f4"),
        ("black", "<f4"),  # share of levels 0 and 1
        ("white", "<f4"),  # share of levels 254 and 255
        ("coloured", "<u1"),
        ("mode", "S19"),  # as stored in the file
        ("format", "S8"),
        ("doubt", "S8"),  # the first of HEADER_DOUBTS that the file's header raises
        ("border", "<u1", 4 * SEGMENTS),  # mean level along the four sides
        # CRC-32 of the pixels and of the record above: the only sign of damage that keeps the size.
        ("checksum", "<u4"),
    ]
)


def compute_facts(xray: Xray) -> np.ndarray:
    """Return the FACTS of a full-size image: a record without content, border and checksum."""
    import imagehash

    image = xray.image
    record = np.zeros((), FACTS)
    counts = np.asarray(image.histogram(), dtype=np.float64)
    levels, total = np.arange(256.0), counts.sum()
    mean = float(counts @ levels / total)
    size = f"{image.width}x{image.height}".encode()
    digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=size).digest()
    record["pixels"] = np.frombuffer(digest, "<u8")
    # 16 x 16 frequencies: with the usual 8 x 8, different chests share a hash.
    bits = imagehash.phash(image, hash_size=16).hash
    record["phash"] = np.packbits(bits).view("<u8")
    record["width"], record["height"] = image.size
    record["mean"] = mean
    record["std"] = np.sqrt(counts @ (levels - mean) ** 2 / total)
    record["black"], record["white"] = counts[:2].sum() / total, counts[254:].sum() / total
    record["coloured"] = xray.coloured
    record["mode"] = xray.mode.encode()[:19]
    record["format"] = xray.format.encode()[:8]
    found = {caveat.reason for caveat in xray.caveats}
    record["doubt"] = next((one.name.encode() for one in HEADER_DOUBTS if one in found), b"")
    return record


def compute_border(pixels: np.ndarray) -> np.ndarray:
    """Return the mean level along the four sides of images [N, H, W]: uint8 [N, 4 * SEGMENTS]."""
    _, height, width = pixels.shape
    y, x = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    profiles = [
        pixels[:, :y].mean(axis=1),
        pixels[:, -y:].mean(axis=1),
        pixels[:, :, :x].mean(axis=2),
        pixels[:, :, -x:].mean(axis=2),
    ]
    segments = [one for side in profiles for one in np.array_split(side, SEGMENTS, axis=1)]
    means = np.stack([segment.mean(axis=1) for segment in segments], axis=1)
    return np.round(means).astype(np.uint8)


def compute_checksum(pixels: np.ndarray, record: np.void) -> int:
    """Return the CRC-32 of an image's pixels and of its record without the checksum."""
    offset = FACTS.fields["checksum"][1]
    return zlib.crc32(record.tobytes()[:offset], zlib.crc32(pixels.tobytes()))
