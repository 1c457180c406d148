"""Read an X-ray file or its bytes as one 8-bit grayscale image with what the file says of it."""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pneumonia_hf.errors import XrayError
from pneumonia_hf.imaging.grayscale import (
    check_size,
    colours_to_gray,
    count_levels,
    cut_bands,
    look_up,
    scale_levels,
    scale_wide,
)
from pneumonia_hf.imaging.xray import Xray

__all__ = ["IMAGE_SUFFIXES", "XrayError", "is_image_file", "open_xray", "read_xray", "to_xray"]
# When a folder is searched, files with these extensions are read as X-rays, and those with the
# second ones are not. Of all others the first bytes decide.
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .tif .tiff .bmp .webp .dcm .dicom".split()
)
_OTHER_SUFFIXES = frozenset(
    ".txt .csv .tsv .json .jsonl .xml .md .html .pdf .xls .xlsx .yaml .yml .py .ipynb .log .zip "
    ".gz .tar .npy .npz .db .parquet".split()
)
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF and BigTIFF in both byte orders
)
START = 132  # bytes of a file that `is_image_start` needs
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 64_000_000  # the largest detectors have about 19 megapixels
MAX_FILE_BYTES = 400_000_000  # 64 megapixels of three 16-bit colours, uncompressed
MAX_DECODED_BYTES = 400_000_000  # of a decoder's buffers; with the gray copy, below 500 MB
_TAG_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MAX_SCANS = 100  # of a progressive JPEG; cameras write ten
_GRAY_16_MODES = {"I;16", "I;16L", "I;16B", "I;16N"}
# Pillow keeps the high byte of 16-bit colours. Unpacking with the bytes swapped gives the low
# byte. (Compressed TIFF has the machine's byte order, 16N.)
_OTHER_BYTE = {
    f"{colours};16{order}": f"{colours};16{other}"
    for colours in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as Pillow's


def read_xray(
    source: str | Path | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return the image alone of what `open_xray` reads."""
    return open_xray(source, name, max_pixels).image


def to_xray(source: Xray | Image.Image | str | Path | bytes) -> Xray:
    """Return the X-ray in a file or its bytes, or a decoded image with what its pixels tell.

    A decoded image is turned upright by its EXIF data, as pipelines of transformers turn it.

    Raises:
        TypeError: the source is of another type.
        XrayError: as of open_xray.
    """
    if isinstance(source, Xray):
        return source
    if isinstance(source, str | Path | bytes):
        return open_xray(source)
    if not isinstance(source, Image.Image):
        raise TypeError(
            f"An X-ray is a path, the bytes of a file, a PIL image or an Xray, not "
            f"{type(source).__name__}; make an array an image with PIL.Image.fromarray."
        )
    try:
        orientation = _find_orientation(source)
    except Exception as error:  # Pillow raises a dozen types of error on damaged files
        raise XrayError(f"The image has damaged EXIF data ({_shorten_reason(error)}).") from error
    if source.mode == "L" and orientation in (None, 1):
        return Xray(source, source.mode)
    gray, coloured = _to_gray(source)
    return Xray(_turn(Image.fromarray(gray), orientation), source.mode, coloured=coloured)


def open_xray(
    source: str | Path | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Xray:
    """Return the X-ray in `source` as 8-bit gray, upright and not inverted.

    Args:
        source: the path or bytes of a JPEG, PNG (8 or 16 bit), TIFF, BMP, WebP or DICOM file. Of
            the several images in a JPEG of a phone or camera (MPO), the first is read.
        name: the image's name in error messages; by default the file's name.
        max_pixels: of a larger image nothing is decoded; at most MAX_PIXELS.

    Returns:
        The image, what the file says of it, and warnings. EXIF rotation and DICOM windows are
        applied, 16-bit values are scaled by their own range, MONOCHROME1 X-rays are inverted.

    Raises:
        XrayError: the source cannot be read as one image; the text gives the reason.
    """
    label = _shorten(name or ("the image" if isinstance(source, bytes) else Path(source).name))
    with _open(source, name) as stream, warnings.catch_warnings():
        # Pillow and pydicom warn of odd but readable files.
        warnings.simplefilter("ignore")
        start = stream.read(START)
        if not start:
            raise XrayError(f"{label} is an empty file.")
        stream.seek(0)
        if start[128:] != b"DICM":
            try:
                return _read_image(label, stream, min(max_pixels, MAX_PIXELS))
            except Image.UnidentifiedImageError as error:
                # Some archives export DICOM data sets without the file header.
                has_suffix = Path(name or label).suffix.lower() in {".dcm", ".dicom"}
                if not (has_suffix and start[:2] in {b"\x08\0", b"\x02\0", b"\0\x08"}):
                    raise XrayError(
                        f"{label} is not an image that can be read; "
                        f"give a JPEG, PNG, TIFF, BMP, WebP or DICOM file."
                    ) from error
        stream.seek(0)
        return _read_dicom(label, stream, min(max_pixels, MAX_PIXELS))


def is_image_file(path: Path) -> bool:
    """Return whether a file in a folder is read as an X-ray, by its extension or first bytes.

    DICOM files from archives often have no extension, and phones write JPEG files under many.
    """
    known = is_image_name(path.name)
    if known is False or not path.is_file():
        return False
    if known:
        return True
    try:
        with path.open("rb") as file:
            return is_image_start(file.read(START))
    except OSError:
        return False


def is_image_name(name: str) -> bool | None:
    """Return whether the file's name makes it an image; None: its first bytes decide."""
    suffix = Path(name).suffix.lower()
    if name.startswith(".") or suffix in _OTHER_SUFFIXES:
        return False
    return True if suffix in IMAGE_SUFFIXES else None


def is_image_start(start: bytes) -> bool:
    """Return whether the first START bytes are those of a file in a supported format."""
    return (
        start.startswith(_SIGNATURES)
        or (start[:2] == b"BM" and start[6:10] == bytes(4))  # reserved; of text they are not 0
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or start[128:132] == b"DICM"
    )


def _open(source: str | Path | bytes, name: str | None) -> BinaryIO:
    # Errors here give the whole path, which helps to find the file.
    name = _shorten(name or ("the image" if isinstance(source, bytes) else str(source)), 120)
    if isinstance(source, bytes):
        stream, size = io.BytesIO(source), len(source)
    else:
        try:
            found = os.stat(source)
            # Check first: opening a pipe without a writer would block.
            regular = stat.S_ISREG(found.st_mode)
            stream, size = open(source, "rb") if regular else None, found.st_size
        except FileNotFoundError as error:
            raise XrayError(f"{name} does not exist.") from error
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            reason = getattr(error, "strerror", None) or "the file name is invalid"
            raise XrayError(f"{name} cannot be opened: {reason}.") from error
        if stream is None:
            is_folder = stat.S_ISDIR(found.st_mode)
            what = "a folder, not an image" if is_folder else "not a regular file"
            raise XrayError(f"{name} is {what}.")
    if size > MAX_FILE_BYTES:
        stream.close()
        limit = MAX_FILE_BYTES / 1e6
        raise XrayError(f"{name} has {size / 1e6:.0f} MB, more than the {limit:.0f} MB allowed.")
    return stream


def _read_image(name: str, stream: BinaryIO, max_pixels: int) -> Xray:
    try:
        frames = _count_directories(stream)
        image = Image.open(stream, formats=FORMATS)
        mode, form = image.mode, image.format
        check_size(name, image.size, max_pixels)
        _check_cost(name, image, stream)
        frames = frames or getattr(image, "n_frames", 1)
        # The further images of a JPEG (MPO) are a preview or a map of brightness, not X-rays.
        if frames > 1 and form != "MPO":
            raise XrayError(f"{name} has {frames} frames; give one image per file.")
        raw = _get_raw_mode(image)
        image.load()
        orientation = _find_orientation(image)
        gray, coloured = _to_gray(image)
        if raw in _OTHER_BYTE:
            del image  # two images of 64 megapixels would exceed the memory limit
            gray = _gray_16_bit_colours(stream, raw)
        elif raw == "LA;16B":
            del image
            gray = _gray_16_bit_alpha(stream)
    except (XrayError, Image.UnidentifiedImageError):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, checked by Image.open
        raise XrayError(
            f"{name} has more than the {MAX_PIXELS // 10**6} million pixels allowed."
        ) from error
    except Exception as error:
        # Pillow's decoders raise a dozen types of error on damaged files.
        raise XrayError(
            f"{name} is damaged and cannot be decoded ({_shorten_reason(error)})."
        ) from error
    return Xray(_turn(Image.fromarray(gray), orientation), mode, form, coloured)


def _read_dicom(name: str, stream: BinaryIO, max_pixels: int) -> Xray:
    from pneumonia_hf.imaging.dicom import read_dicom

    try:
        return read_dicom(name, stream, max_pixels)
    except XrayError:
        raise
    except Exception as error:  # pydicom and its decoders raise many types
        raise XrayError(
            f"{name} is a DICOM file that cannot be decoded ({_shorten_reason(error)})."
        ) from error


def _to_gray(image: Image.Image) -> tuple[np.ndarray, bool]:
    # Pillow's conversion clips 16-bit values at 255, which turns X-rays white.
    if image.mode not in _GRAY_16_MODES | {"I", "F"}:
        return colours_to_gray(image)
    gray = _scale_16_bit(image) if image.mode in _GRAY_16_MODES else scale_wide(image)
    # Of TIFF files whose lowest value is white, Pillow inverts those of up to 8 bits alone.
    if getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0:
        np.subtract(255, gray, out=gray)
    return gray, False


def _scale_16_bit(levels: Image.Image | np.ndarray) -> np.ndarray:
    counts = count_levels(levels)
    return look_up(scale_levels(np.arange(65536.0), counts), levels)


def _get_raw_mode(image: Image.Image) -> str | None:
    """Return the raw mode of the file: Pillow's name for its byte layout."""
    arguments = image.tile[0].args if image.tile else None
    return arguments[0] if isinstance(arguments, tuple) else arguments


def _unpack(stream: BinaryIO, raw: str) -> Image.Image:
    """Decode an image again with another raw mode."""
    stream.seek(0)
    image = Image.open(stream, formats=FORMATS)
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in image.tile
    ]
    image.load()
    return image


def _gray_16_bit_colours(stream: BinaryIO, raw: str) -> np.ndarray:
    levels = alpha = None
    for weight, layout in ((256, raw), (1, _OTHER_BYTE[raw])):
        image = _unpack(stream, layout)
        if levels is None:
            levels = np.zeros(image.size[::-1], np.uint16)
            alpha = image.getchannel("A") if raw.startswith("RGBA") else None
        for rows, band in cut_bands(image):
            light = np.asarray(band, np.float32)[..., :3] @ _LUMINANCE
            levels[rows] += np.round(light * weight).astype(np.uint16)
        del image, band
    if alpha is not None:
        for rows, band in cut_bands(alpha):
            levels[rows] = levels[rows] * (np.asarray(band, np.float32) / 255)
    return _scale_16_bit(levels)


def _gray_16_bit_alpha(stream: BinaryIO) -> np.ndarray:
    # 16-bit gray and alpha have the layout of four 8-bit channels.
    image = _unpack(stream, "RGBA")
    levels = np.empty(image.size[::-1], np.uint16)
    for rows, band in cut_bands(image):
        high, low, alpha = np.moveaxis(np.asarray(band, np.float32)[..., :3], 2, 0)
        levels[rows] = (high * 256 + low) * (alpha / 255)
    return _scale_16_bit(levels)


def _count_directories(stream: BinaryIO) -> int | None:
    """Return the number of images in a TIFF, up to 100, or None for another format.

    Raises:
        ValueError: the tags together are longer than the file. Pillow reads the data of every
            tag, and forged tags can share theirs: a file of 300 kB would take gigabytes.
    """
    start = stream.read(16)
    size = stream.seek(0, os.SEEK_END)
    count, order = 0, {b"II": "<", b"MM": ">"}.get(start[:2])
    version = struct.unpack_from(f"{order}H", start, 2)[0] if order and len(start) == 16 else None
    if version in (42, 43):
        head, entry, link = ("H", "HHI4x", "I") if version == 42 else ("Q", "HHQ8x", "Q")
        place = struct.unpack_from(order + link, start, 4 if version == 42 else 8)[0]
        while 0 < place < size and count < 100:
            stream.seek(place)
            entries = struct.unpack(order + head, stream.read(struct.calcsize(order + head)))[0]
            body = stream.read(min(entries, 65536) * struct.calcsize(order + entry))
            tags = struct.iter_unpack(order + entry, body)
            if sum(_TAG_BYTES.get(kind, 1) * number for _, kind, number in tags) > 2 * size:
                raise ValueError("its tags are longer than the file")
            ending = stream.read(struct.calcsize(order + link))
            place = struct.unpack(order + link, ending)[0] if len(ending) > 2 else 0
            count += 1
    stream.seek(0)
    return count or None


def _find_orientation(image: Image.Image) -> int | None:
    if image.format == "TIFF":
        return None  # Pillow applied it while loading
    block = image.info.get("exif") or b""
    if not block and "Raw profile type exif" in image.info:
        block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    if block:
        _count_directories(io.BytesIO(block.removeprefix(b"Exif\0\0")))
    return image.getexif().get(ExifTags.Base.Orientation)


def _turn(image: Image.Image, orientation: int | None) -> Image.Image:
    if orientation is not None:
        image.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _check_cost(name: str, image: Image.Image, stream: BinaryIO) -> None:
    """Raise an XrayError if decoding would take too much memory or time."""
    pixels = image.size[0] * image.size[1]
    cost = len(image.getbands()) if image.mode in {"1", "L", "P"} else 4  # bytes per pixel
    if image.mode in _GRAY_16_MODES:
        cost = 2
    if image.format == "WEBP":
        cost += 12  # libwebp's two canvases and its copy for Pillow
    if _get_raw_mode(image) in _OTHER_BYTE:
        cost += 3 if image.mode == "RGBA" else 2  # for _gray_16_bit_colours
    if image.info.get("progressive"):
        cost += 2 * len(image.getbands())  # all coefficients are kept until the last scan
        place = stream.tell()
        stream.seek(0)
        if stream.read().count(b"\xff\xda") > _MAX_SCANS:
            raise XrayError(f"{name} is a JPEG of more than {_MAX_SCANS} scans.")
        stream.seek(place)
    if pixels * cost > MAX_DECODED_BYTES:
        most = MAX_DECODED_BYTES / cost / 1e6
        raise XrayError(
            f"{name} has {image.size[0]} x {image.size[1]} pixels, more than the {most:.0f} "
            f"million allowed for this type of {image.format} file."
        )


def _shorten(text: str, most: int = 60) -> str:
    """Return `text` as one short line of printable characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else f"{text[: most // 3]}...{text[-most // 2 :]}"


def _shorten_reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydicom's first line is general; one line for each of its plug-ins follows.
    return _shorten(lines[-1] if lines else type(error).__name__, 100).rstrip(". ")
