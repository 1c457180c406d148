"""Read images while others are scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pneumonia_hf.errors import XrayError
from pneumonia_hf.imaging.read import open_xray
from pneumonia_hf.imaging.xray import Xray

if TYPE_CHECKING:
    from PIL import Image

CHUNK = 32  # decoded images in memory at a time, and as many that are being decoded
UndecodedImage = tuple[str | None, Path | bytes | XrayError]  # name and image, by `open_images`
Item, Result = TypeVar("Item"), TypeVar("Result")


def read_in_chunks(
    images: Iterable[UndecodedImage],
) -> Iterator[list[Xray | XrayError]]:
    """Yield the decoded images, CHUNK at a time; the next are decoded meanwhile."""
    from joblib import cpu_count

    workers = max(1, cpu_count() - 1)  # a core is left to the network, which computes on all
    decoded = map_ahead(try_to_read, iter(images), workers, CHUNK)
    yield from cut(decoded, CHUNK)


def cut(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last may be shorter."""
    items = iter(items)
    while part := list(islice(items, size)):
        yield part


def map_ahead(
    function: Callable[[Item], Result], items: Iterator[Item], workers: int, most: int
) -> Iterator[Result]:
    """Yield the results in order; threads compute up to `most` further ones meanwhile."""
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque(pool.submit(function, one) for one in islice(items, most))
        while ahead:
            found = ahead.popleft().result()
            ahead.extend(pool.submit(function, one) for one in islice(items, 1))
            yield found


def read_or_fail(images: Iterable[UndecodedImage]) -> Iterator[list[Image.Image]]:
    """Yield the decoded images, up to CHUNK at a time.

    Raises:
        XrayError: an image cannot be read.
    """
    for decoded in read_in_chunks(images):
        for found in decoded:
            if isinstance(found, XrayError):
                raise found
        yield [xray.image for xray in decoded]


def try_to_read(image: UndecodedImage) -> Xray | XrayError:
    """Return the decoded image, or why it cannot be read."""
    name, source = image
    if isinstance(source, XrayError):
        return source
    try:
        return open_xray(source, name)
    except XrayError as error:
        return error
