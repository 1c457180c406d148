"""Decode images once, in parallel, into a memory-mapped cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.file_hashes import HashCache, Stat, hash_content, shorten
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
    store = open_store(processor)
    decoding = _Decoding(data, processor, store)
    if not decoding.look_up():
        with store.lock():
            decoding.decode_missing(name)
    kept = np.flatnonzero(decoding.rows >= 0)
    pixels = XrayPixels(
        store,
        rows=decoding.rows[kept],
        labels=column(data, "label").to_numpy().astype(np.int64)[kept],
        hashes=decoding.hashes[kept],
    )
    return Decoded(pixels, kept, tuple(decoding.issues))


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
    """The result for one image: found in the store, a new image, or an issue."""

    name: str
    content: bytes = b""
    image: Image.Image | None = None
    facts: np.ndarray | None = None
    issue: str = ""
    kind: str = "unreadable"  # of the issue
    stat: Stat | None = None  # of its file


class _Decoding:
    """The state of one call of `decode`: the store's row and the hash of each image."""

    def __init__(self, data: Dataset, processor: BaseImageProcessor, store: PixelStore) -> None:
        self.data, self.processor, self.store = data, processor, store
        self.index = store.index()
        self.hash_cache = HashCache(store.folder.parent)
        self.rows = np.full(len(data), -1, np.int64)
        self.hashes = np.zeros(len(data), np.uint64)
        self.issues: list[DataIssue] = []

    def look_up(self) -> bool:
        """Look up all images by path, size and times; return whether all are in the store."""
        facts = self.store.facts()
        addresses, start = list_addresses(self.data), 0
        while chunk := list(islice(addresses, 1000)):
            for number, content in enumerate(self.hash_cache.get(chunk), start):
                row = self.index.get(content)
                # The checksum takes about 50 microseconds for 50 KB.
                if row is None or not self.store.is_intact(row, facts):
                    return False
                self.rows[number], self.hashes[number] = row, shorten(content)
            start += len(chunk)
        return True

    def decode_missing(self, name: str) -> None:
        """Decode what the store lacks, in parallel, and write it chunk by chunk."""
        from joblib import cpu_count
        from tqdm.auto import tqdm

        self.index = self.store.index()  # another process may have written in the meantime
        tasks = zip(list_addresses(self.data), open_images(self.data), strict=True)

        def submit() -> list:
            chunk = list(islice(tasks, CHUNK))
            known = self.hash_cache.get([address for address, _ in chunk])
            return [
                pool.submit(self._read, address, *image, content)
                for (address, image), content in zip(chunk, known, strict=True)
            ]

        with (
            ThreadPoolExecutor(cpu_count()) as pool,
            tqdm(
                total=len(self.data), desc=f"Decoding {name}".strip(), unit="image", leave=False
            ) as bar,
        ):
            start, futures = 0, submit()
            while futures:
                # The next chunk is decoded while this one is resized and written.
                later = submit()
                readings = [future.result() for future in futures]
                self._write(readings, start)
                self.hash_cache.put([(one.stat, one.content) for one in readings])
                start += len(readings)
                bar.update(len(readings))
                futures = later

    def _read(
        self, address: str, name: str, source: Path | bytes | XrayError, known: bytes | None
    ) -> _Reading:
        """Decode one image, unless its content is in the store; `known` is its cached hash."""
        if known in self.index and self.store.is_intact(self.index[known]):
            return _Reading(name, known)
        if isinstance(source, XrayError):
            return _Reading(name, issue=_strip_name(source, name))
        try:
            stat = stat_image(address)
            data = source if isinstance(source, bytes) else source.read_bytes()
        except OSError as error:
            return _Reading(name, issue=f"it cannot be opened: {error.strerror}")
        content = hash_content(data)
        if content in self.index and self.store.is_intact(self.index[content]):
            return _Reading(name, content, stat=stat)
        try:
            xray = open_xray(data, name)
        except XrayError as error:
            return _Reading(name, content, issue=_strip_name(error, name))
        if has_two_levels(xray.image):
            return _Reading(name, content, issue="it has only two gray levels", kind="mask")
        return _Reading(name, content, image=xray.image, facts=compute_facts(xray), stat=stat)

    def _write(self, readings: list[_Reading], start: int) -> None:
        """Append the new images of a chunk to the store, and record the row of each image."""
        new: dict[bytes, _Reading] = {}
        for reading in readings:
            if reading.image is not None:
                new.setdefault(reading.content, reading)
        if new:
            pixels = resize([one.image for one in new.values()], self.processor).numpy()
            facts = np.stack([one.facts for one in new.values()])
            facts["content"] = [np.frombuffer(content, "<u8") for content in new]
            facts["border"] = compute_border(pixels[:, 0])
            self.index |= zip(new, self.store.append(pixels, facts).tolist(), strict=True)
        for number, reading in enumerate(readings, start):
            if reading.issue:
                self.issues.append(DataIssue(reading.kind, reading.name, reading.issue))
            else:
                self.rows[number] = self.index[reading.content]
                self.hashes[number] = shorten(reading.content)


def _strip_name(error: XrayError, name: str) -> str:
    """Return an error's sentence without the name at its start."""
    return str(error).removeprefix(f"{name} ").rstrip(".")
