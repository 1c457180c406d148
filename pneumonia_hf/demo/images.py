"""Images for the page: small enough to send, in the page itself, so that none lies on the disk."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

SHOWN_SIDE = 1600  # pixels of the longer side
MAP_SIDE = 448
THUMBNAIL_SIDE = 96


def to_data_uri(image: Image.Image, side: int = SHOWN_SIDE) -> str:
    """Return an image as JPEG in a data URI, its longer side at most `side` pixels."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _encode(image, "JPEG", quality=93)


def colour_map(values: np.ndarray) -> Image.Image:
    """Return an attribution map, [H, W] in 0..1, in colours that are clear where it is 0."""
    from matplotlib import colormaps

    colours: Colormap = colormaps["inferno"]
    small = Image.fromarray((values * 255).round().astype(np.uint8))
    small.thumbnail((MAP_SIDE, MAP_SIDE), Image.Resampling.BILINEAR)
    level = np.asarray(small, np.float32) / 255
    pixels = (colours(level) * 255).round().astype(np.uint8)
    pixels[..., 3] = (255 * np.sqrt(level)).round()  # low evidence stays visible
    return Image.fromarray(pixels, "RGBA")


def map_to_data_uri(values: np.ndarray) -> str:
    """Return a coloured attribution map as PNG in a data URI."""
    return _encode(colour_map(values), "PNG", compress_level=1)  # in a third of the time


def _encode(image: Image.Image, form: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    kind = form.lower()
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
