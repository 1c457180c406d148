"""Display DICOM values as 8-bit grayscale: rescale, window and lookup tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.imaging.grayscale import (
    COLOUR_DISTANCE,
    colours_to_gray,
    count_levels,
    cut_bands,
    find_percentiles,
    look_up,
    scale_levels,
)
from pneumonia_hf.reasons import Caveat, Reason

if TYPE_CHECKING:
    from pydicom import Dataset

_WRAPPED = 1e-4  # share of neighbours that jump by half the range once unused bits are cleared
_LEAST_SPREAD = 64  # gray levels between the 1st and 99th percentile after windowing


def render_samples(pixels: np.ndarray, photometric: str, bits: int) -> tuple[np.ndarray, bool]:
    """Return colour samples [H, W, 3] as gray, and whether they are coloured."""
    from pydicom.pixels import convert_color_space

    def to_rgb(band: np.ndarray) -> np.ndarray:
        band = (band >> max(bits - 8, 0)).astype(np.uint8)
        is_ybr = photometric.startswith("YBR_FULL")
        return convert_color_space(band, photometric, "RGB") if is_ybr else band

    return colours_to_gray(pixels, to_rgb)


def render_palette(pixels: np.ndarray, dataset: Dataset) -> tuple[np.ndarray, bool]:
    """Return palette indices [H, W] as gray, and whether the palette colours are in use."""
    from pydicom.pixels import apply_color_lut

    if pixels.dtype.itemsize > 2 or "RedPaletteColorLookupTableData" not in dataset:
        # Segmented palettes can be decompression bombs, and X-rays do not use them.
        raise ValueError("its type of palette is not supported")
    levels, stored = _list_stored(pixels, dataset)
    colours = apply_color_lut(stored, dataset)[:, :3]
    if colours.max() > 255:  # some 16-bit palettes hold 8-bit values
        colours = colours >> 8
    colours = colours.astype(np.uint8)
    counts = count_levels(levels)[: len(stored)]
    distance = (np.ptp(colours, axis=1) * counts).sum() / counts.sum()
    table, _ = colours_to_gray(colours[np.newaxis])
    return look_up(table[0], levels), bool(distance > COLOUR_DISTANCE)


def is_inverted(dataset: Dataset) -> bool:
    """Return whether the lowest value is displayed white.

    MONOCHROME1 requires the shape INVERSE (PS3.3 C.8.11.3), so the two together invert once.
    """
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    return dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE"


def render_levels(pixels: np.ndarray, dataset: Dataset, caveats: list[Caveat]) -> np.ndarray:
    """Return values of up to 16 bits as displayed gray (DICOM PS3.4 N.2).

    Each step works on the table of possible values, not on the pixels. What the file says and
    cannot be done is added to `caveats`.
    """
    levels, stored = _list_stored(pixels, dataset)
    counts = count_levels(levels)[: len(stored)]
    raw = np.arange(len(stored)).astype(levels.dtype).view(pixels.dtype).astype(np.int32)
    is_cut = counts[raw != stored].any()
    if is_cut and _is_wrapped(levels, stored, raw, dataset.BitsStored):
        caveats.append(Reason.BITS.caveat(bits=dataset.BitsStored))
    padding = _find_padding(stored, dataset)
    if counts[~padding].any():
        counts[padding] = 0
    else:
        padding[:] = False
    values = _rescale(stored, dataset)
    table = _apply_window(values, counts, dataset, caveats)
    if table is None:
        table = scale_levels(values, counts)
    if is_inverted(dataset):
        table = 255 - table
    table[padding] = 0
    return look_up(table, levels)


def _list_stored(pixels: np.ndarray, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return `pixels` as unsigned levels, and the stored value of each possible level."""
    levels = pixels.view(pixels.dtype.str.replace("i", "u"))
    bits = 8 * pixels.dtype.itemsize
    signed = dataset.PixelRepresentation == 1
    stored = np.arange(1 << bits).astype(f"u{bits // 8}").view(f"{'ui'[signed]}{bits // 8}")
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        # The bits above those stored may hold an overlay or garbage.
        above = unused = bits - dataset.BitsStored
        high = dataset.get("HighBit")
        # Until 2011 garbage could lie below the values too. Some headers are wrong about that.
        if high in range(dataset.BitsStored, bits) and levels.max() >= 1 << dataset.BitsStored:
            above = bits - 1 - high
        stored = np.right_shift(np.left_shift(stored, above), unused)
    return levels, stored.astype(np.int32)


def _is_wrapped(levels: np.ndarray, stored: np.ndarray, raw: np.ndarray, bits: int) -> bool:
    """Return whether the bits above those stored belong to the values.

    Then neighbours that are close as they are in the file jump by nearly the whole range where
    the values pass the largest that can be stored. Of an overlay or garbage, the file itself has
    the jumps: of real X-rays with random bits above them, 0.02% as many pairs jump once these are
    cleared; of X-rays of 13, 14 and 16 bits, 1.8 times as many or more.
    """
    half = 1 << (bits - 1)
    cleared = own = 0  # pairs that jump once the bits are cleared, and only before
    for _, band in cut_bands(levels):
        jumps, raw_jumps = (np.abs(np.diff(each[band], axis=1)) > half for each in (stored, raw))
        cleared += int((jumps & ~raw_jumps).sum())
        own += int((raw_jumps & ~jumps).sum())
    return cleared > max(_WRAPPED * levels.size, own / 20)


def _find_padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(len(stored), bool)
    last = dataset.get("PixelPaddingRangeLimit")
    last = last if isinstance(last, int) else first
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _rescale(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    if dataset.get("ModalityLUTSequence"):
        return _apply_table(stored, dataset, dataset.ModalityLUTSequence[0])[0]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if not slope:  # absent or empty; a slope of 0 would leave no X-ray
        for key in {"RescaleSlope", "RescaleIntercept"} & set(dataset.dir()):
            delattr(dataset, key)
        return stored.astype(np.float64)
    values = stored * float(slope) + float(intercept or 0)
    if not np.isfinite(values).all():
        raise ValueError("its rescale slope and intercept are invalid")
    return values


def _apply_window(
    values: np.ndarray, counts: np.ndarray, dataset: Dataset, caveats: list[Caveat]
) -> np.ndarray | None:
    """Return `values` as gray under the first VOI LUT or window, or None without a usable one.

    The gray is scaled by the window's possible output, not by its actual output, so that it
    looks as it does on a workstation.
    """
    from pydicom.pixels import apply_windowing

    try:
        if dataset.get("VOILUTSequence"):
            shown, most = _apply_table(values, dataset, dataset.VOILUTSequence[0])
            least = 0.0
        elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
            shown = apply_windowing(values, dataset)
            least, most = apply_windowing(np.array([-np.inf, np.inf]), dataset)
        else:
            return None
        # pydicom's output falls from least to most where the rescale slope is negative.
        if not (np.isfinite([least, most]).all() and least != most):
            raise ValueError("the window has no range")
    except Exception:
        # Windows without width and tables without length are common; pydicom raises many types
        # of error on them. The X-ray is then scaled by its own range.
        caveats.append(Reason.WINDOW.caveat())
        return None
    shown = np.clip((shown - least) / (most - least), 0, 1) * 255
    # Some windows are so wide that lungs and bones look alike: use the X-ray's own range.
    low, high = find_percentiles(shown, counts, [1, 99])
    return np.round(shown).astype(np.uint8) if high - low >= _LEAST_SPREAD else None


def _apply_table(values: np.ndarray, dataset: Dataset, item: Dataset) -> tuple[np.ndarray, float]:
    """Return `values` mapped by a modality or VOI LUT (C.11.1), and its largest possible output.

    pydicom's `apply_voi` wraps around in tables of more than 256 8-bit entries, and its
    `apply_modality_lut` fails on entries of 10 to 15 bits.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 65536
    table = item.LUTData
    order = "<" if dataset.original_encoding[1] else ">"
    if isinstance(table, bytes):
        wide = len(table) >= 2 * entries
        table = np.frombuffer(table[: len(table) // 2 * 2], f"{order}u2" if wide else "u1")
    else:
        table = np.atleast_1d(np.asarray(table, np.uint16))
        if len(table) < entries <= 2 * len(table):  # two entries of 8 bits in each
            table = table.astype(f"{order}u2").view(np.uint8)
    table = table[:entries]
    index = np.clip(np.round(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index].astype(np.float64), max(2.0**bits - 1, float(table.max()))
