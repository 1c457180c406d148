"""Hash the content of images, and cache the hashes of files that do not change."""

from __future__ import annotations

import hashlib
import logging
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
Stat = tuple[str, int, int, int]  # address, size, time of modification, time of status change


def hash_images(data: Dataset) -> np.ndarray:
    """Return the hash of each image's bytes, 0 for unreadable ones: uint64 [N].

    Files that are unchanged since they were hashed are not opened.
    """
    from joblib import cpu_count

    hash_cache = HashCache(cache_folder())
    hashes, start = np.zeros(len(data), np.uint64), 0
    addresses = list_addresses(data)
    while chunk := list(islice(addresses, 1000)):
        cached = [shorten(content or b"") for content in hash_cache.get(chunk)]
        hashes[start : start + len(chunk)] = cached
        start += len(chunk)
    if hashes.all():
        return hashes

    def hash_one(
        task: tuple[str, tuple[str, Path | bytes | XrayError]], known: bytes | None
    ) -> tuple[Stat | None, bytes]:
        address, (_, source) = task
        if known:
            return None, known
        if isinstance(source, XrayError):
            return None, b""
        try:
            stat = stat_image(address)
            return stat, hash_content(source if isinstance(source, bytes) else source.read_bytes())
        except OSError:
            return None, b""

    tasks, start = zip(list_addresses(data), open_images(data), strict=True), 0
    with ThreadPoolExecutor(cpu_count()) as pool:
        while chunk := list(islice(tasks, 1000)):
            known = hash_cache.get([address for address, _ in chunk])
            found = list(pool.map(hash_one, chunk, known))
            hashes[start : start + len(chunk)] = [shorten(content) for _, content in found]
            hash_cache.put(found)
            start += len(chunk)
    return hashes


def hash_content(data: bytes) -> bytes:
    """Return the first 16 bytes of the SHA-256 of a file's bytes."""
    return hashlib.sha256(data).digest()[:16]


def shorten(content: bytes) -> int:
    """Return the first 64 bits of a hash, as manifests store them; 0 for no bytes."""
    return int.from_bytes(content[:8], "big")


def to_hex(hashes: np.ndarray) -> list[str]:
    """Return each hash as 16 hex digits: the first of the file's SHA-256."""
    return [int(one).to_bytes(8, "big").hex() for one in hashes]


def from_hex(hashes: Sequence[str]) -> np.ndarray:
    """Return the hashes of `to_hex`: uint64 [N]."""
    return np.array([int(one, 16) for one in hashes], dtype=np.uint64)


class HashCache:
    """Content hashes of files by path, size and times, in an SQLite database.

    A file that is overwritten gets a new time of status change, and so is read again. The cache
    is optional: without it, every file is read and hashed.
    """

    SETTLED = 2.0  # seconds; a file's times may be coarser than the writes to it

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
        """Return the cached hash of each unchanged file, None for the others."""
        query = "SELECT content FROM files WHERE (path, size, modified, changed) = (?, ?, ?, ?)"
        contents: list[bytes | None] = [None] * len(addresses)
        if not self.path.exists():
            return contents
        try:
            with self._connect() as base:
                for number, address in enumerate(addresses):
                    try:
                        stat = stat_image(address)
                    except OSError:
                        continue
                    row = base.execute(query, stat).fetchone() if stat else None
                    contents[number] = row[0] if row else None
        except sqlite3.Error as error:
            self._handle(error)
            return [None] * len(addresses)
        return contents

    def put(self, found: Sequence[tuple[Stat | None, bytes]]) -> None:
        """Store the hashes of files that were just read."""
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
            self._handle(error)

    def _handle(self, error: Exception) -> None:
        logger.debug("The cache of file hashes is not used: %s", error)
        if isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error):
            self.path.unlink(missing_ok=True)
