"""read_xray: a file or bytes, whatever a clinic hands over -> one 8-bit gray image."""

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
from PIL import Image

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

__all__ = ["IMAGE_SUFFIXES", "XrayError", "is_image_file", "read_xray"]
# Files with these endings are taken for X-rays when a folder is searched.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"}
)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 64_000_000  # the largest detectors have about 19 megapixels
MAX_FILE_BYTES = 400_000_000  # 64 megapixels of three 16-bit colours, uncompressed
# What a decoder may hold of an image at once; with the gray copy it stays below 500 MB.
MAX_DECODED_BYTES = 400_000_000
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # the EXIF tag
_TAG_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MAX_SCANS = 100  # of a progressive JPEG; cameras write ten
_DEEP_GREY = {"I;16", "I;16L", "I;16B", "I;16N"}
# Pillow keeps the high byte of each 16-bit colour. Unpacked with the bytes in the other order,
# the same file gives the low ones. (Compressed TIFF comes in the machine's own order, 16N.)
_OTHER_BYTE = {
    f"{colours};16{order}": f"{colours};16{other}"
    for colours in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as Pillow's


def read_xray(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Return the image in `source` as 8-bit gray, upright and not inverted.

    Args:
        source: the path of a file, or the bytes of one: JPEG, PNG (8 or 16 bit), TIFF, BMP,
            WebP or DICOM.
        name: what the messages of errors call it; the file's own name by default.

    Returns:
        An image of mode "L": 0 is black (air), 255 white (bone). EXIF rotation is applied,
        16-bit values are scaled by their own range, DICOM windows are applied, MONOCHROME1
        X-rays are inverted. Its `info` has "coloured" (whether the file held more than shades of
        gray), "format" ("JPEG", "DICOM"), "mode" (as stored: "RGB", "I;16",
        "DICOM 12 bit MONOCHROME2") and, of DICOM, "modality" ("DX").

    Raises:
        XrayError: the source cannot be read as one image; the text says why.
    """
    called = _shorten(name or ("the image" if isinstance(source, bytes) else Path(source).name))
    with _open(source, name) as stream:
        start = stream.read(132)
        if not start:
            raise XrayError(f"{called} is an empty file.")
        stream.seek(0)
        is_dicom = start[128:] == b"DICM"
        if not is_dicom:
            try:
                return _read_image(called, stream)
            except Image.UnidentifiedImageError as error:
                # Some archives hand out data sets without the header of a file.
                named = Path(name or called).suffix.lower() in {".dcm", ".dicom"}
                if not (named and start[:2] in {b"\x08\0", b"\x02\0", b"\0\x08"}):
                    raise XrayError(
                        f"{called} is not an image that can be read; "
                        f"give a JPEG, PNG, TIFF, BMP, WebP or DICOM file."
                    ) from error
        stream.seek(0)
        return _read_dicom(called, stream)


def is_image_file(path: Path) -> bool:
    """Return whether a file found in a folder is taken for an X-ray, by its name.

    DICOM files from a hospital's archive often have no ending: those are known by their start.
    """
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _open(source: str | Path | bytes, name: str | None) -> BinaryIO:
    # What is not there is told with its path: the name alone would not help to find it.
    name = _shorten(name or ("the image" if isinstance(source, bytes) else str(source)), 120)
    if isinstance(source, bytes):
        stream, size = io.BytesIO(source), len(source)
    else:
        try:
            found = os.stat(source)
            # Before opening: a pipe that nobody writes to would be waited for.
            regular = stat.S_ISREG(found.st_mode)
            stream, size = open(source, "rb") if regular else None, found.st_size
        except FileNotFoundError as error:
            raise XrayError(f"{name} does not exist.") from error
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            reason = getattr(error, "strerror", None) or "no file can be called so"
            raise XrayError(f"{name} cannot be opened: {reason}.") from error
        if stream is None:
            what = "a folder, not an image" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise XrayError(f"{name} is {what}.")
    if size > MAX_FILE_BYTES:
        stream.close()
        raise XrayError(
            f"{name} is {size / 1e6:.0f} MB large, more than the {MAX_FILE_BYTES / 1e6:.0f} MB "
            f"allowed."
        )
    return stream


def _read_image(name: str, stream: BinaryIO) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and of odd EXIF blocks; the bound below is ours.
            warnings.simplefilter("ignore")
            frames = _count_directories(stream)
            image = Image.open(stream, formats=FORMATS)
            mode, form = image.mode, image.format
            check_size(name, image.size, MAX_PIXELS)
            _check_cost(name, image, stream)
            frames = frames or getattr(image, "n_frames", 1)
            if frames > 1:
                raise XrayError(f"{name} holds {frames} frames; give one image a file.")
            raw = _get_raw_mode(image)
            image.load()
            turned = _UPRIGHT.get(_find_orientation(image))
            gray, coloured = _to_gray(image)
            if raw in _OTHER_BYTE:
                del image  # two of 64 megapixels would not fit
                gray = _gray_deep_colours(stream, raw)
            elif raw == "LA;16B":
                del image
                gray = _gray_deep_alpha(stream)
    except (XrayError, Image.UnidentifiedImageError):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own bound, checked while opening
        raise XrayError(
            f"{name} has more than the {MAX_PIXELS // 10**6} million pixels allowed."
        ) from error
    except Exception as error:
        # Pillow's decoders raise a dozen kinds of error on damaged files.
        raise XrayError(
            f"{name} is damaged and cannot be decoded ({_give_reason(error)})."
        ) from error
    image = _image(gray, coloured, mode, form)
    if turned is None:
        return image
    upright = image.transpose(turned)
    upright.info = image.info
    return upright


def _read_dicom(name: str, stream: BinaryIO) -> Image.Image:
    from pneumonia_hf.imaging.dicom import read_dicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every small breach of the standard
            decoded = read_dicom(name, stream, MAX_PIXELS)
    except XrayError:
        raise
    except Exception as error:
        # pydicom and the decoders behind it raise as many kinds as Pillow's.
        raise XrayError(
            f"{name} is a DICOM file that cannot be decoded ({_give_reason(error)})."
        ) from error
    return _image(
        decoded.gray,
        decoded.coloured,
        decoded.mode,
        "DICOM",
        modality=decoded.modality,
    )


def _to_gray(image: Image.Image) -> tuple[np.ndarray, bool]:
    # Pillow's own conversion clips 16-bit values at 255, which turns X-rays white.
    if image.mode in _DEEP_GREY:
        return _scale_deep(image), False
    if image.mode in {"I", "F"}:
        return scale_wide(image), False
    return colours_to_gray(image)


def _scale_deep(levels: Image.Image | np.ndarray) -> np.ndarray:
    counts = count_levels(levels)
    return look_up(scale_levels(np.arange(65536.0), counts), levels)


def _get_raw_mode(image: Image.Image) -> str | None:
    """Return how the file lays out its numbers, as Pillow's unpackers call it."""
    arguments = image.tile[0].args if image.tile else None
    return arguments[0] if isinstance(arguments, tuple) else arguments


def _unpack(stream: BinaryIO, raw: str) -> Image.Image:
    """Read an image again, taking its numbers for laid out as `raw` says."""
    stream.seek(0)
    image = Image.open(stream, formats=FORMATS)
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in image.tile
    ]
    image.load()
    return image


def _gray_deep_colours(stream: BinaryIO, raw: str) -> np.ndarray:
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
    return _scale_deep(levels)


def _gray_deep_alpha(stream: BinaryIO) -> np.ndarray:
    # Gray and alpha of 16 bits each have the layout of four colours of 8.
    image = _unpack(stream, "RGBA")
    levels = np.empty(image.size[::-1], np.uint16)
    for rows, band in cut_bands(image):
        high, low, alpha = np.moveaxis(np.asarray(band, np.float32)[..., :3], 2, 0)
        levels[rows] = (high * 256 + low) * (alpha / 255)
    return _scale_deep(levels)


def _count_directories(stream: BinaryIO) -> int | None:
    """Return how many images a TIFF holds, up to 100; None where the stream is none.

    Pillow reads all that a directory's tags point to, and they can all point to the same bytes:
    of 300 kB it makes gigabytes. Honest tags do not overlap.
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
                raise ValueError("its tags are longer than itself")
            ending = stream.read(struct.calcsize(order + link))
            place = struct.unpack(order + link, ending)[0] if len(ending) > 2 else 0
            count += 1
    stream.seek(0)
    return count or None


def _find_orientation(image: Image.Image) -> int | None:
    if image.format == "TIFF":
        return None  # Pillow has turned it while loading
    block = image.info.get("exif") or b""
    if not block and "Raw profile type exif" in image.info:
        block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    if block:
        _count_directories(io.BytesIO(block.removeprefix(b"Exif\0\0")))
    return image.getexif().get(_ORIENTATION)


def _check_cost(name: str, image: Image.Image, stream: BinaryIO) -> None:
    """Refuse what takes more memory or time to decode than its pixels alone."""
    pixels = image.size[0] * image.size[1]
    cost = len(image.getbands()) if image.mode in {"1", "L", "P"} else 4
    if image.mode in _DEEP_GREY:
        cost = 2
    if image.format == "WEBP":
        cost += 12  # libwebp's two canvases and its copy for Pillow
    if _get_raw_mode(image) in _OTHER_BYTE:
        cost += 3 if image.mode == "RGBA" else 2  # see _grey_deep_colours
    if image.info.get("progressive"):
        cost += 2 * len(image.getbands())  # every coefficient waits for the last scan
        place = stream.tell()
        stream.seek(0)
        if stream.read().count(b"\xff\xda") > _MAX_SCANS:
            raise XrayError(f"{name} is a JPEG of more than {_MAX_SCANS} scans.")
        stream.seek(place)
    if pixels * cost > MAX_DECODED_BYTES:
        most = MAX_DECODED_BYTES / cost / 1e6
        raise XrayError(
            f"{name} has {image.size[0]} x {image.size[1]} pixels, more than the {most:.0f} "
            f"million that fit in memory of a {image.format} file of its kind."
        )


def _image(gray: np.ndarray, coloured: bool, mode: str, form: str, **more: str) -> Image.Image:
    image = Image.fromarray(gray)
    image.info.update(coloured=coloured, mode=mode, format=form, **more)
    return image


def _shorten(text: str, most: int = 60) -> str:
    """Return `text` as one short line of characters that can be shown."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else f"{text[: most // 3]}...{text[-most // 2 :]}"


def _give_reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydicom tells what each of its plug-ins said, a line each, after a first line of its own.
    return _shorten(lines[-1] if lines else type(error).__name__, 100).rstrip(". ")
