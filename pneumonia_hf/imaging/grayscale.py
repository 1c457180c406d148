"""Numbers and colours of any depth -> 8-bit gray, a band of rows at a time.

An X-ray of 64 megapixels is to be read with a few copies of it in memory, not with twenty: numpy's
percentiles and Pillow's conversions of a whole image would each make several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageChops

from pneumonia_hf.errors import XrayError

# Mean distance between the colour channels, in gray levels of 255, from which an image counts
# as coloured. JPEG's colour subsampling leaves less than 2 in scans that were stored as RGB.
COLOUR_DISTANCE = 4.0
_BAND = 1 << 20  # pixels
_SAMPLE = 1 << 22  # pixels that percentiles of wide numbers are taken from


def check_size(name: str, size: tuple[int, int], most: int) -> None:
    """Raise an XrayError where an image has more than `most` pixels."""
    width, height = size
    if width * height > most:
        raise XrayError(
            f"{name} has {width} x {height}, more than the {most // 10**6} million pixels allowed."
        )


def cut_bands(image: Image.Image | np.ndarray) -> Iterator[tuple[slice, Image.Image]]:
    """Yield the rows of an image or array, with their place, about a million pixels each."""
    whole = isinstance(image, np.ndarray)
    height, width = image.shape[:2] if whole else image.size[::-1]
    step = max(1, _BAND // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        rows = slice(top, bottom)
        yield rows, image[rows] if whole else image.crop((0, top, width, bottom))


def count_levels(levels: Image.Image | np.ndarray) -> np.ndarray:
    """Return how many pixels have each of the 65,536 values of unsigned 16-bit numbers."""
    counts = np.zeros(65536, np.int64)
    for _, band in cut_bands(levels):
        counts += np.bincount(np.asarray(band).ravel(), minlength=65536)
    return counts


def find_percentiles(values: np.ndarray, counts: np.ndarray, percents: list[float]) -> np.ndarray:
    """Return what `np.percentile` does of `values`, each repeated `counts` times."""
    present = np.flatnonzero(counts)
    present = present[np.argsort(values[present], kind="stable")]
    last = np.cumsum(counts[present]) - 1
    ranks = np.asarray(percents) / 100 * last[-1]
    low = values[present[np.searchsorted(last, np.floor(ranks))]]
    high = values[present[np.searchsorted(last, np.ceil(ranks))]]
    return low + (high - low) * (ranks - np.floor(ranks))


def scale_levels(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the gray, 0..255, of `values` that lie `counts` times in an image.

    The 0.1st to the 99.9th percentile fill the range, so that one hot pixel costs nothing.
    """
    low, high = find_percentiles(values, counts, [0.1, 99.9])
    if high <= low:
        present = values[counts > 0]
        low, high = present.min(), present.max()
    return _stretch(values, float(low), float(high))


def look_up(table: np.ndarray, levels: Image.Image | np.ndarray) -> np.ndarray:
    """Return `table[levels]` as an image of 8 bits."""
    height, width = levels.shape if isinstance(levels, np.ndarray) else levels.size[::-1]
    gray = np.empty((height, width), np.uint8)
    for rows, band in cut_bands(levels):
        gray[rows] = table[np.asarray(band)]
    return gray


def scale_wide(numbers: Image.Image | np.ndarray) -> np.ndarray:
    """Scale floats, or integers of 32 bits, as `scale_levels` does."""
    height, width = numbers.shape if isinstance(numbers, np.ndarray) else numbers.size[::-1]
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

    What is transparent is shown on black. `to_rgb` makes 8-bit RGB of a band of an array.
    """
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
    gray, distance = np.empty((height, width), np.uint8), 0
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
    return gray, distance > COLOUR_DISTANCE * height * width


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (values - low) / max(high - low, 1e-9)
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
