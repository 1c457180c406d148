"""read_xray: a file or bytes, whatever a clinic hands over -> one 8-bit grey picture."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from pneumonia_hf.errors import XrayError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["IMAGE_SUFFIXES", "XrayError", "is_picture_file", "read_xray"]

# Files with these endings are taken for X-rays when a folder is searched.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"}
)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 64_000_000  # the largest detectors have about 19 megapixels
_MEGAPIXELS = MAX_PIXELS // 1_000_000

# Mean distance between the colour channels, in grey levels of 255, from which a picture counts
# as coloured. JPEG's colour subsampling leaves less than 2 in scans that were stored as RGB.
COLOUR_DISTANCE = 4.0


def read_xray(source: str | Path | bytes) -> Image.Image:
    """Return the picture in `source` as 8-bit grey, upright and not inverted.

    Args:
        source: the path of a file, or the bytes of one: JPEG, PNG (8 or 16 bit), TIFF, BMP,
            WebP or DICOM.

    Returns:
        A picture of mode "L": 0 is black (air), 255 white (bone). EXIF rotation is applied,
        16-bit values are scaled by their own range, MONOCHROME1 films are inverted.
        `picture.info["coloured"]` says whether the file held more than shades of grey.

    Raises:
        XrayError: the source cannot be read as one picture; the text says why.
    """
    name, data = _load(source)
    if not data:
        raise XrayError(f"{name} is an empty file.")
    if data[128:132] == b"DICM":
        return _read_dicom(name, data)
    return _read_image(name, data)


def is_picture_file(path: Path) -> bool:
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


def _load(source: str | Path | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "the picture", source
    path = Path(source)
    try:
        return path.name, path.read_bytes()
    except FileNotFoundError as error:
        raise XrayError(f"{path} does not exist.") from error
    except IsADirectoryError as error:
        raise XrayError(f"{path} is a folder, not a picture.") from error
    except OSError as error:
        raise XrayError(f"{path} cannot be opened: {error.strerror}.") from error


def _read_image(name: str, data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures and of odd EXIF blocks; the bound below is ours.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(name, image.size)
            if getattr(image, "n_frames", 1) > 1:
                raise XrayError(f"{name} holds {image.n_frames} frames; give one picture a file.")
            image.load()
            image = ImageOps.exif_transpose(image)
    except XrayError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own bound, checked while opening
        raise XrayError(f"{name} has more than the {_MEGAPIXELS} million pixels allowed.") from (
            error
        )
    except Image.UnidentifiedImageError as error:
        raise XrayError(
            f"{name} is not a picture that can be read; "
            f"give a JPEG, PNG, TIFF, BMP, WebP or DICOM file."
        ) from error
    except Exception as error:
        # Pillow's decoders raise a dozen kinds of error on damaged files.
        raise XrayError(f"{name} is damaged and cannot be decoded ({_reason(error)}).") from error
    return _grey(image)


def _grey(image: Image.Image) -> Image.Image:
    if image.mode in {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}:
        # Pillow's own conversion clips 16-bit values at 255, which turns films white.
        return _picture(_scale_to_8_bit(np.asarray(image, dtype=np.float64)), coloured=False)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, "black")
        image = Image.alpha_composite(black, rgba).convert("RGB")
    if image.mode in {"L", "1"}:
        return _picture(np.asarray(image.convert("L")), coloured=False)
    rgb = image.convert("RGB")
    values = np.asarray(rgb, dtype=np.int16)
    distance = np.mean(values.max(axis=2) - values.min(axis=2))
    return _picture(np.asarray(rgb.convert("L")), coloured=bool(distance > COLOUR_DISTANCE))


def _read_dicom(name: str, data: bytes) -> Image.Image:
    import pydicom
    from pydicom.pixels import apply_rescale, apply_windowing

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every small breach of the standard
            film = pydicom.dcmread(io.BytesIO(data))
            if "PixelData" not in film:
                raise XrayError(f"{name} is a DICOM file without a picture in it.")
            frames = int(film.get("NumberOfFrames") or 1)
            if frames > 1:
                raise XrayError(f"{name} holds {frames} frames; give one picture a file.")
            _check_size(name, (int(film.Columns), int(film.Rows)))
            if film.get("SamplesPerPixel", 1) != 1:
                return _grey(Image.fromarray(film.pixel_array))
            values = apply_rescale(film.pixel_array, film).astype(np.float64)
            windowed = None
            if film.get("WindowCenter") is not None and film.get("WindowWidth") is not None:
                windowed = apply_windowing(values, film)
    except XrayError:
        raise
    except Exception as error:
        raise XrayError(f"{name} is a DICOM file that cannot be decoded ({_reason(error)}).") from (
            error
        )
    grey = _scale_to_8_bit(values)
    if windowed is not None:
        low, high = _stored_range(film)
        shown = np.clip((windowed - low) / (high - low), 0, 1) * 255
        # Some films carry a window so wide that lungs and bones look alike: then their own
        # range, above, tells more.
        if np.percentile(shown, 99) - np.percentile(shown, 1) >= 64:
            grey = np.round(shown).astype(np.uint8)
    if film.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = 255 - grey
    return _picture(grey, coloured=False)


def _stored_range(film: Dataset) -> tuple[float, float]:
    """Return the least and greatest value that the window of a film can put out."""
    bits = int(film.BitsStored)
    low, high = (0, 2**bits - 1)
    if film.PixelRepresentation == 1:
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    slope = float(film.get("RescaleSlope", 1))
    intercept = float(film.get("RescaleIntercept", 0))
    return low * slope + intercept, high * slope + intercept


def _scale_to_8_bit(values: np.ndarray) -> np.ndarray:
    """Map the 0.1st to the 99.9th percentile onto 0..255, so that one hot pixel costs nothing."""
    values = np.nan_to_num(values)
    low, high = np.percentile(values, [0.1, 99.9])
    if high <= low:
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) / max(high - low, 1e-9)
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _picture(grey: np.ndarray, coloured: bool) -> Image.Image:
    picture = Image.fromarray(grey)
    picture.info["coloured"] = coloured
    return picture


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise XrayError(
            f"{name} has {width} x {height}, more than the {_MEGAPIXELS} million pixels allowed."
        )


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
