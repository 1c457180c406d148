"""Convert values and colours of any depth to 8-bit gray, a band of rows at a time.

On a whole image of 64 megapixels, numpy's percentiles and Pillow's conversions would each make
several copies; in bands they need a few copies in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageChops

from pneumonia_hf.errors import XrayError

# An image is coloured above this mean distance between its channels, in gray levels of 255.
# JPEG's chroma subsampling causes less than 2 in gray scans stored as RGB.
COLOUR_DISTANCE = 4.0
# A mask's gray levels: two explain nearly all of their variance (real X-rays: up to 0.93; masks,
# smoothly resized from 299 to 64 pixels: 0.96), and most pixels are within _NEAR of one of the two
# (X-rays: up to 0.67; masks as JPEG of quality 20: 0.93, resized to 128 pixels: 0.92).
_MASK_VARIANCE, _MASK_PIXELS, _NEAR = 0.95, 0.85, 4
_BAND = 1 << 20  # pixels
_SAMPLE = 1 << 22  # pixels sampled for the percentiles of 32-bit values


def check_size(name: str, size: tuple[int, int], most: int) -> None:
    """Raise an XrayError if an image has more than `most` pixels."""
    width, height = size
    if width * height > most:
        raise XrayError(
            f"{name} has {width} x {height}, more than the {most // 10**6} million pixels allowed."
        )


def shape_of(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Return the height and width of an image or array."""
    return image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]


def cut_bands(image: Image.Image | np.ndarray) -> Iterator[tuple[slice, Image.Image]]:
    """Yield bands of rows of about a million pixels: their slice, and the band itself."""
    height, width = shape_of(image)
    step = max(1, _BAND // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        rows, box = slice(top, bottom), (0, top, width, bottom)
        yield rows, image[rows] if isinstance(image, np.ndarray) else image.crop(box)


def count_levels(levels: Image.Image | np.ndarray) -> np.ndarray:
    """Return the histogram of unsigned 16-bit values: int64 [65536]."""
    counts = np.zeros(65536, np.int64)
    for _, band in cut_bands(levels):
        counts += np.bincount(np.asarray(band).ravel(), minlength=65536)
    return counts


def find_percentiles(values: np.ndarray, counts: np.ndarray, percents: list[float]) -> np.ndarray:
    """Return `np.percentile` of `values` repeated `counts` times."""
    present = np.flatnonzero(counts)
    present = present[np.argsort(values[present], kind="stable")]
    last = np.cumsum(counts[present]) - 1
    ranks = np.asarray(percents) / 100 * last[-1]
    low = values[present[np.searchsorted(last, np.floor(ranks))]]
    high = values[present[np.searchsorted(last, np.ceil(ranks))]]
    return low + (high - low) * (ranks - np.floor(ranks))


def has_two_levels(image: Image.Image) -> bool:
    """Return whether a gray image has but two levels, as masks have, even as JPEG or resized."""
    shares = np.asarray(image.histogram(), np.float64) / (image.width * image.height)
    levels = np.arange(256.0)
    below, sums = np.cumsum(shares)[:-1], np.cumsum(shares * levels)
    mean, sums = sums[-1], sums[:-1]
    variance = shares @ (levels - mean) ** 2
    if not variance:
        return False  # one level only: a blank image
    # Otsu 1979: the share of the variance that lies between the levels up to and above each one.
    between = (mean * below - sums) ** 2 / np.maximum(below * (1 - below), 1e-12) / variance
    split = int(between.argmax()) + 1
    peaks = np.array([shares[:split].argmax(), split + shares[split:].argmax()])
    near = (np.abs(levels[:, None] - peaks) <= _NEAR).any(axis=1)
    return bool(between.max() >= _MASK_VARIANCE and shares[near].sum() >= _MASK_PIXELS)


def scale_levels(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the gray of `values` that occur `counts` times in an image: uint8.

    The 0.1st to the 99.9th percentile span 0..255, so that hot pixels do not count.
    """
    low, high = find_percentiles(values, counts, [0.1, 99.9])
    if high <= low:
        present = values[counts > 0]
        low, high = present.min(), present.max()
    return _stretch(values, float(low), float(high))


def look_up(table: np.ndarray, levels: Image.Image | np.ndarray) -> np.ndarray:
    """Return `table[levels]`: uint8 [H, W]."""
    gray = np.empty(shape_of(levels), np.uint8)
    for rows, band in cut_bands(levels):
        gray[rows] = table[np.asarray(band)]
    return gray


def scale_wide(numbers: Image.Image | np.ndarray) -> np.ndarray:
    """Scale floats or 32-bit integers as `scale_levels` does: uint8 [H, W]."""
    height, width = shape_of(numbers)
    stride = -(-height * width // _SAMPLE)
    sample = np.concatenate(
        [np.asarray(band).ravel()[::stride].astype(np.float64) for _, band in cut_bands(numbers)]
    )
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, [0.1, 99.9]) if finite.size else (0.0, 0.0)
    if high <= low and finite.size:
        low, high = finite.min(), finite.max()
    gray = np.empty((height, width), np.uint8)
    for rows, band in cut_bands(numbers):
        values = np.nan_to_num(np.asarray(band, np.float64), nan=low)
        gray[rows] = _stretch(values, float(low), float(high))
    return gray


def colours_to_gray(
    image: Image.Image | np.ndarray,
    to_rgb: Callable[[np.ndarray], np.ndarray] = np.ascontiguousarray,
) -> tuple[np.ndarray, bool]:
    """Return the luminance of an image of any 8-bit mode, and whether it is coloured.

    Transparent pixels are composed on black. `to_rgb` converts a band of an array to 8-bit RGB.
    """
    gray, distance = np.empty(shape_of(image), np.uint8), 0
    for rows, band in cut_bands(image):
        if isinstance(band, np.ndarray):
            band = Image.fromarray(to_rgb(band))
        if band.mode in {"L", "1"} and "transparency" not in band.info:
            gray[rows] = np.asarray(band.convert("L"))
            continue
        if band.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in band.info:
            band = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", band.size, "black"), band)
        band = band.convert("RGB")
        gray[rows] = np.asarray(band.convert("L"))
        red, green, blue = band.split()
        most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
        least = ImageChops.darker(ImageChops.darker(red, green), blue)
        distance += int(np.asarray(ImageChops.subtract(most, least)).sum(dtype=np.int64))
    return gray, distance > COLOUR_DISTANCE * gray.size


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (values - low) / max(high - low, 1e-9)
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
