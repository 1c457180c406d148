"""Decode images once, in parallel, into a memory-mapped cache."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.file_hashes import HashCache, Stat, hash_content
from pneumonia_hf.data.image_stats import compute_border, compute_facts
from pneumonia_hf.data.issues import DataIssue, log_issues
from pneumonia_hf.data.pixel_store import PixelStore, XrayPixels, open_store
from pneumonia_hf.data.sources import list_addresses, open_images, stat_image
from pneumonia_hf.data.table import XrayData, column, take
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.imaging.grayscale import has_two_levels
from pneumonia_hf.imaging.preprocess import resize
from pneumonia_hf.imaging.read import open_xray
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image
    from transformers import BaseImageProcessor

CHUNK = 64  # images decoded and written at a time


@dataclass(frozen=True)
class Decoded:
    """The decoded images of a table."""

    pixels: XrayPixels
    kept: np.ndarray  # int64 [N]: the rows of the table that are X-rays, in order
    issues: tuple[DataIssue, ...]  # one for each other row: unreadable, or a mask


def decode(data: Dataset, processor: BaseImageProcessor, name: str = "") -> Decoded:
    """Return the images of a split at the model's size, decoding those that are not yet cached.

    Unreadable images and masks are left out and listed in `issues`. `name` is for the progress
    bar. The cache lies where `cache_folder` says.

    Raises:
        UserError: the cache folder cannot be used.
    """
    store, hash_cache = open_store(processor), HashCache()
    hashes = hash_cache.get(data)
    rows = store.find(hashes, store.index())
    issues: list[DataIssue] = []
    if (rows < 0).any():
        with store.lock():
            missing = np.flatnonzero(rows < 0)
            # The store is shared by all splits and sources: only what it lacks is decoded.
            for start, readings in _decode_missing(take(data, missing), store, processor, name):
                hash_cache.put([(reading.stat, reading.content) for reading in readings])
                for row, reading in zip(missing[start:], readings, strict=False):
                    rows[row], hashes[row] = reading.row, reading.content
                    issues += [reading.issue] if reading.issue else []
    kept = np.flatnonzero(rows >= 0)
    labels = column(data, "label").to_numpy().astype(np.int64)
    pixels = XrayPixels(store, rows[kept], labels[kept], hashes[kept])
    return Decoded(pixels, kept, tuple(issues))


def decode_splits(
    data: XrayData,
    processor: BaseImageProcessor,
    *,
    strict: bool = False,
    may_lack: bool = False,
) -> tuple[XrayData, dict[str, XrayPixels]]:
    """Return the splits without unreadable images and masks, and their images at the model's size.

    What is left out is logged with its reason and added to the issues of the splits.

    Raises:
        UserError: no readable image of a class is left in train or validation, unless
            `may_lack`; with `strict`, any image is left out.
    """
    decoded = {name: decode(split, processor, name) for name, split in data.items()}
    left_out = [issue for one in decoded.values() for issue in one.issues]
    log_issues(left_out, strict)
    splits = {
        name: take(split, decoded[name].kept) if decoded[name].issues else split
        for name, split in data.items()
    }
    if not any(len(one.pixels) for one in decoded.values()):
        raise UserError(f"No image can be read: {left_out[0].file}, {left_out[0].reason}.")
    for name, one in decoded.items():
        lacking = [label for number, label in enumerate(LABELS) if number not in one.pixels.labels]
        if lacking and name in ("train", "validation") and not may_lack:
            raise UserError(
                f"No image of {lacking[0]} in the {name} split can be read: "
                f"{one.issues[0].file}, {one.issues[0].reason}."
            )
    kept = XrayData(splits, (*data.issues, *left_out))
    return kept, {name: one.pixels for name, one in decoded.items()}


@dataclass
class _Reading:
    """What became of one image: it is in the store, or there is an issue."""

    content: int = 0  # hash of its file
    stat: Stat | None = None  # of its file
    image: Image.Image | None = None  # if it is new
    facts: np.ndarray | None = None  # if it is new
    issue: DataIssue | None = None
    row: int = -1  # of the store


def _decode_missing(
    data: Dataset, store: PixelStore, processor: BaseImageProcessor, name: str
) -> Iterator[tuple[int, list[_Reading]]]:
    """Decode images in parallel and append them to the store; yield each chunk and its start."""
    from joblib import cpu_count
    from tqdm.auto import tqdm

    index = store.index()  # another process may have written in the meantime
    tasks = zip(list_addresses(data), open_images(data), strict=True)
    bar = tqdm(total=len(data), desc=f"Decoding {name}".strip(), unit="image", leave=False)
    with ThreadPoolExecutor(cpu_count()) as pool, bar:

        def submit() -> list[Future]:
            chunk = islice(tasks, CHUNK)
            return [pool.submit(_read, address, *image, store, index) for address, image in chunk]

        start, futures = 0, submit()
        while futures:
            later = submit()  # decoded while this chunk is resized and written
            readings = [future.result() for future in futures]
            new = {reading.content: reading for reading in readings if reading.image is not None}
            if new:
                pixels = resize([reading.image for reading in new.values()], processor).numpy()
                facts = np.stack([reading.facts for reading in new.values()])
                facts["content"] = np.array([*new], np.uint64)
                facts["border"] = compute_border(pixels[:, 0])
                index |= zip(new, store.append(pixels, facts).tolist(), strict=True)
            for reading in readings:
                reading.row = -1 if reading.issue else index[reading.content]
            yield start, readings
            start += len(readings)
            bar.update(len(readings))
            futures = later


def _read(
    address: str,
    name: str,
    source: Path | bytes | XrayError,
    store: PixelStore,
    index: dict[int, int],
) -> _Reading:
    """Decode one image, unless its content is in the store."""
    content, kind = 0, "unreadable"
    try:
        if isinstance(source, XrayError):
            raise source
        stat = stat_image(address)
        data = source if isinstance(source, bytes) else source.read_bytes()
        content = hash_content(data)
        if store.find([content], index)[0] >= 0:
            return _Reading(content, stat)
        xray = open_xray(data, name)
        if not has_two_levels(xray.image):
            return _Reading(content, stat, xray.image, compute_facts(xray))
        kind, reason = "mask", "it has only two gray levels"
    except OSError as error:
        reason = f"it cannot be opened: {error.strerror}"
    except XrayError as error:
        reason = str(error).removeprefix(f"{name} ").rstrip(".")
    return _Reading(content, issue=DataIssue(kind, name, reason))
