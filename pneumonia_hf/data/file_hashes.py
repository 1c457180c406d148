"""Which content each image has, remembered for as long as its file is as it was."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.pixel_store import cache_folder
from pneumonia_hf.data.sources import list_addresses, open_images, stat_image
from pneumonia_hf.errors import XrayError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
Stat = tuple[str, int, int, int]  # address, size, time of change of contents, and of the file


def hash_images(data: Dataset, cache_dir: str | Path | None = None) -> np.ndarray:
    """Return the hash of each row's bytes, 0 for those that cannot be had: uint64 [N].

    Files that did not change since they were hashed are not opened.
    """
    hash_cache = HashCache(cache_folder(cache_dir))
    hashes, at = np.zeros(len(data), np.uint64), 0
    addresses = list_addresses(data)
    while chunk := list(islice(addresses, 1000)):
        for offset, content in enumerate(hash_cache.get(chunk), start=at):
            hashes[offset] = shorten(content) if content else 0
        at += len(chunk)
    if hashes.all():
        return hashes

    def hash_one(
        address: str, image: tuple[str, Path | bytes | XrayError], known: bytes | None
    ) -> tuple[Stat | None, bytes]:
        source = image[1]
        if known:
            return None, known
        try:
            if isinstance(source, XrayError):
                raise source
            stat = stat_image(address)
            data = source if isinstance(source, bytes) else source.read_bytes()
        except (OSError, XrayError):
            return None, b""
        return stat, hash_content(data)

    tasks, at = zip(list_addresses(data), open_images(data), strict=True), 0
    with ThreadPoolExecutor(count_cores()) as pool:
        while chunk := list(islice(tasks, 1000)):
            known = hash_cache.get([address for address, _ in chunk])
            found = list(pool.map(hash_one, *zip(*chunk, strict=True), known))
            for offset, (_, content) in enumerate(found, start=at):
                hashes[offset] = shorten(content) if content else 0
            hash_cache.put(found)
            at += len(found)
    return hashes


def hash_content(data: bytes) -> bytes:
    """Return the hash that an image is known by: the first 16 bytes of its file's SHA-256."""
    return hashlib.sha256(data).digest()[:16]


def to_hex(hashes: np.ndarray) -> list[str]:
    """Return 16 hex digits for each hash: the first of the file's SHA-256."""
    return [int(one).to_bytes(8, "big").hex() for one in hashes]


def from_hex(hashes: Sequence[str]) -> np.ndarray:
    """Return the hashes that `to_hex` wrote."""
    return np.array([int(one, 16) for one in hashes], dtype=np.uint64)


class HashCache:
    """Which content each file had when it was last read, by its path, size and times.

    A file that is written over gets another change time from the system, so that it is read
    again. The memory is a help only: without it every file is read and hashed.
    """

    SETTLED = 2.0  # seconds; times of files may be coarser than the writes to them

    def __init__(self, folder: Path) -> None:
        self.path = folder / "files.sqlite"

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30)) as base, base:
            base.execute(
                "CREATE TABLE IF NOT EXISTS files "
                "(path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, changed INTEGER, "
                "content BLOB) WITHOUT ROWID"
            )
            yield base

    def get(self, addresses: Sequence[str]) -> list[bytes | None]:
        """Return the content hash of each image whose file is as it was, None for the others."""
        if not self.path.exists():
            return [None] * len(addresses)
        contents: list[bytes | None] = []
        try:
            with self._connect() as base:
                for address in addresses:
                    try:
                        stat = stat_image(address)
                    except OSError:
                        stat = None
                    if stat is None:
                        contents.append(None)
                        continue
                    row = base.execute(
                        "SELECT content FROM files WHERE path = ? AND size = ? AND modified = ? "
                        "AND changed = ?",
                        stat,
                    ).fetchone()
                    contents.append(row[0] if row else None)
        except sqlite3.Error as error:
            self._forget(error)
            return [None] * len(addresses)
        return contents

    def put(self, found: Sequence[tuple[Stat | None, bytes]]) -> None:
        """Note the contents of files that were just read."""
        now = time.time_ns() - int(self.SETTLED * 1e9)
        rows = [
            (*stat, content) for stat, content in found if stat and content and max(stat[2:]) < now
        ]
        if not rows:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._connect() as base:
                base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._forget(error)

    def _forget(self, error: Exception) -> None:
        logger.debug("The memory of file hashes is not used: %s", error)
        if isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error):
            self.path.unlink(missing_ok=True)


def shorten(content: bytes) -> int:
    """Return the first 64 bits of a hash, as manifests write them."""
    return int.from_bytes(content[:8], "big")


def count_cores() -> int:
    """Return how many cores this process may use."""
    able = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(able(0)) if able else os.cpu_count() or 1
