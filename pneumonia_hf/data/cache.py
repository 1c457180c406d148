"""Images read once, in parallel, into a store; later, and in other processes, found there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.file_hashes import HashCache, Stat, count_cores, hash_content, shorten
from pneumonia_hf.data.image_stats import checksum_of, describe, describe_border
from pneumonia_hf.data.issues import DataIssue, log_issues
from pneumonia_hf.data.pixel_store import PixelStore, StoreIndex, XrayPixels, open_store
from pneumonia_hf.data.sources import list_addresses, open_images, stat_image
from pneumonia_hf.data.table import XrayData, column, take
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.imaging.preprocess import resize
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image
    from transformers import BaseImageProcessor

CHUNK = 64  # images decoded and written at a time


@dataclass(frozen=True)
class Decoded:
    """What came of reading a table of X-rays."""

    pixels: XrayPixels
    kept: np.ndarray  # int64 [N]: the rows of the table that could be read, in order
    issues: tuple[DataIssue, ...]  # one for each that could not


def decode(
    data: Dataset,
    processor: BaseImageProcessor,
    name: str = "",
    cache_dir: str | Path | None = None,
) -> Decoded:
    """Return the images of `data` at the model's size, reading those that no store holds yet.

    What cannot be read is told, and left out.

    Args:
        data: as `load_xrays` returns its parts.
        processor: the one that the model is served with.
        name: what the progress bar calls the data.
        cache_dir: the folder of the stores; left out, `$PNEUMONIA_HF_CACHE`, or
            `pneumonia-hf` in the user's cache folder.

    Raises:
        UserError: the folder of the stores cannot be used.
    """
    store = open_store(processor, cache_dir)
    hash_cache = HashCache(store.folder.parent)
    found = _Found(len(data))
    missing = _look_up(data, store, hash_cache, found)
    if missing:
        with store.lock():
            _build(data, processor, store, hash_cache, found, name)
    kept = np.flatnonzero(found.rows >= 0)
    split = XrayPixels(
        store,
        rows=found.rows[kept],
        labels=column(data, "label").to_numpy().astype(np.int64)[kept],
        hashes=found.hashes[kept],
    )
    return Decoded(split, kept, tuple(found.issues))


def decode_splits(
    data: XrayData,
    processor: BaseImageProcessor,
    cache_dir: str | Path | None = None,
    strict: bool = False,
    may_lack: bool = False,
) -> tuple[XrayData, dict[str, XrayPixels]]:
    """Return the parts without what cannot be read, and their images at the model's size.

    What cannot be read is logged with its reason, and joins the issues of the parts.

    Raises:
        UserError: nothing readable is left of a class; with `strict`, anything unreadable.
    """
    decoded: dict[str, Decoded] = {
        name: decode(split, processor, name, cache_dir) for name, split in data.items()
    }
    unreadable = [issue for one in decoded.values() for issue in one.issues]
    log_issues(unreadable, strict)
    kept = XrayData(
        {
            name: take(split, decoded[name].kept) if decoded[name].issues else split
            for name, split in data.items()
        },
        (*data.issues, *unreadable),
    )
    if not any(len(one.pixels) for one in decoded.values()):
        raise UserError(f"No image can be read: {unreadable[0].file}, {unreadable[0].reason}.")
    for name, one in decoded.items():
        lacking = [label for number, label in enumerate(LABELS) if number not in one.pixels.labels]
        if lacking and name in ("train", "validation") and not may_lack:
            raise UserError(
                f"No image of {lacking[0]} in the {name} part can be read: "
                f"{one.issues[0].file}, {one.issues[0].reason}."
            )
    return kept, {name: one.pixels for name, one in decoded.items()}


class _Found:
    def __init__(self, count: int) -> None:
        self.rows = np.full(count, -1, np.int64)
        self.hashes = np.zeros(count, np.uint64)
        self.issues: list[DataIssue] = []


def _look_up(data: Dataset, store: PixelStore, hash_cache: HashCache, found: _Found) -> bool:
    """Find what the store holds already without opening an image; return whether more is needed.

    An image whose file is known by name, size and times is not opened. The bytes of all others
    have to be read, which is left to `_build`.
    """
    index = StoreIndex(store)
    facts = store.facts()
    addresses, start = list_addresses(data), 0
    while chunk := list(islice(addresses, 1000)):
        for offset, content in enumerate(hash_cache.get(chunk)):
            row = index.find(content) if content else None
            if row is None:
                return True
            # What the disk gives back is what was written: 50 KB take some 50 microseconds.
            image = store.read(np.array([row]))[0]
            if checksum_of(image, facts[row]) != facts[row]["checksum"]:
                return True
            found.rows[start + offset] = row
            found.hashes[start + offset] = shorten(content)
        start += len(chunk)
    return False


def _build(
    data: Dataset,
    processor: BaseImageProcessor,
    store: PixelStore,
    hash_cache: HashCache,
    found: _Found,
    name: str,
) -> None:
    """Read what the store lacks, in parallel, and write it as it comes."""
    from tqdm.auto import tqdm

    index = StoreIndex(store)  # anew: another process may have built while this one waited

    def submit(pool: ThreadPoolExecutor, tasks: list) -> list:
        known = hash_cache.get([address for address, _ in tasks])
        return [
            pool.submit(_read_one, address, *image, content, store, index)
            for (address, image), content in zip(tasks, known, strict=True)
        ]

    tasks = zip(list_addresses(data), open_images(data), strict=True)
    with (
        ThreadPoolExecutor(count_cores()) as pool,
        tqdm(total=len(data), desc=f"Reading {name}".strip(), unit="image", leave=False) as bar,
    ):
        at, futures = 0, submit(pool, list(islice(tasks, CHUNK)))
        while futures:
            # The next chunk is read while this one is resized and written.
            later = submit(pool, list(islice(tasks, CHUNK)))
            readings = [future.result() for future in futures]
            _keep(readings, at, processor, store, index, found)
            hash_cache.put([(one.stat, one.content) for one in readings])
            at += len(readings)
            bar.update(len(readings))
            futures = later


@dataclass
class _Reading:
    """What came of one image: a row of the store, an image to be added, or an issue."""

    name: str
    content: bytes = b""
    row: int | None = None
    image: Image.Image | None = None
    facts: np.ndarray | None = None
    issue: str = ""
    stat: Stat | None = None  # of its file


def _read_one(
    address: str,
    name: str,
    source: Path | bytes | XrayError,
    known: bytes | None,
    store: PixelStore,
    index: StoreIndex,
) -> _Reading:
    """Read one image, unless the content that its file is known to have is in the store."""
    row = index.find(known) if known else None
    if row is not None and store.whole(row):
        return _Reading(name, known, row=row)
    if isinstance(source, XrayError):
        return _Reading(name, issue=_reason(source, name))
    try:
        stat = stat_image(address)
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        return _Reading(name, issue=f"it cannot be opened: {error.strerror}")
    content = hash_content(data)
    row = index.find(content)
    if row is not None and store.whole(row):
        return _Reading(name, content, row=row, stat=stat)
    try:
        image = read_xray(data, name)
    except XrayError as error:
        return _Reading(name, content, issue=_reason(error, name))
    return _Reading(name, content, image=image, facts=describe(image), stat=stat)


def _keep(
    readings: list[_Reading],
    at: int,
    processor: BaseImageProcessor,
    store: PixelStore,
    index: StoreIndex,
    found: _Found,
) -> None:
    """Write the new images of a chunk, and note where each is."""
    new: dict[bytes, _Reading] = {}
    for reading in readings:
        if reading.image is not None:
            new.setdefault(reading.content, reading)
    if new:
        pixels = resize([one.image for one in new.values()], processor).numpy()
        facts = np.stack([one.facts for one in new.values()])
        facts["content"] = [np.frombuffer(content, "<u8") for content in new]
        facts["border"] = describe_border(pixels[:, 0])
        index.added |= dict(zip(new, store.append(pixels, facts).tolist(), strict=True))
    for offset, reading in enumerate(readings, start=at):
        if reading.issue:
            found.issues.append(DataIssue("unreadable", reading.name, reading.issue))
            continue
        row = index.added.get(reading.content, reading.row)
        found.rows[offset] = row
        found.hashes[offset] = shorten(reading.content)


def _reason(error: XrayError, name: str) -> str:
    """Return an error's sentence without the name that it begins with."""
    return str(error).removeprefix(f"{name} ").rstrip(".")
