"""Hash the content of images, and cache the hashes of files that do not change.

A hash is the first 64 bits of the SHA-256 of a file's bytes; 0 stands for an image without one.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.pixel_store import cache_folder
from pneumonia_hf.data.sources import list_addresses, open_images, stat_image
from pneumonia_hf.data.table import take
from pneumonia_hf.errors import XrayError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
Stat = tuple[str, int, int, int]  # address, size, time of modification, time of status change
CHUNK = 1000  # images hashed at a time


def hash_images(data: Dataset) -> np.ndarray:
    """Return the hash of each image, 0 for unreadable ones: uint64 [N].

    Files that are unchanged since they were hashed are not opened.
    """
    from joblib import cpu_count

    hash_cache = HashCache()
    hashes = hash_cache.get(data)
    missing = np.flatnonzero(hashes == 0)
    if not len(missing):
        return hashes

    def hash_one(
        address: str, image: tuple[str, Path | bytes | XrayError]
    ) -> tuple[Stat | None, int]:
        _, source = image
        if isinstance(source, XrayError):
            return None, 0
        try:
            stat = stat_image(address)
            return stat, hash_content(source if isinstance(source, bytes) else source.read_bytes())
        except OSError:
            return None, 0

    rest = take(data, missing)
    addresses, images = list_addresses(rest), open_images(rest)
    with ThreadPoolExecutor(cpu_count()) as pool:
        for start in range(0, len(missing), CHUNK):
            found = list(pool.map(hash_one, islice(addresses, CHUNK), islice(images, CHUNK)))
            hashes[missing[start : start + CHUNK]] = [content for _, content in found]
            hash_cache.put(found)
    return hashes


def hash_content(data: bytes) -> int:
    """Return the hash of a file's bytes."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def to_hex(hashes: Iterable[int]) -> list[str]:
    """Return each hash as 16 hex digits, as manifests store them."""
    return [f"{int(content):016x}" for content in hashes]


TABLE = (
    "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, "
    "changed INTEGER, content TEXT) WITHOUT ROWID"
)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class HashCache:
    """Hashes of files by path, size and times, in an SQLite database.

    A file that is overwritten gets a new time of status change, and so is read again. The cache
    is optional: without it, every file is read and hashed.
    """

    SETTLED = 2.0  # seconds; a file's times may be coarser than the writes to it

    def __init__(self) -> None:
        self.path = cache_folder() / "hashes.sqlite"

    def get(self, data: Dataset) -> np.ndarray:
        """Return the cached hash of each unchanged file, 0 for the others: uint64 [N]."""
        query = "SELECT content FROM files WHERE (path, size, modified, changed) = (?, ?, ?, ?)"
        hashes = np.zeros(len(data), np.uint64)

        def look_up(base: sqlite3.Connection) -> None:
            for number, address in enumerate(list_addresses(data)):
                with suppress(OSError):
                    if stat := stat_image(address):
                        row = base.execute(query, stat).fetchone()
                        hashes[number] = int(row[0], 16) if row else 0

        self._use(look_up)
        return hashes

    def put(self, found: Iterable[tuple[Stat | None, int]]) -> None:
        """Store the hashes of files that were just read."""
        now = time.time_ns() - int(self.SETTLED * 1e9)
        rows = [
            (*stat, *to_hex([content]))
            for stat, content in found
            if stat and content and max(stat[2:]) < now
        ]
        insert = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)"
        self._use(lambda base: base.executemany(insert, rows))

    def _use(self, action: Callable[[sqlite3.Connection], object]) -> None:
        """Call `action` with the open database, unless it is damaged, or locked for too long."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=30)) as base, base:
                base.execute(TABLE)
                action(base)
        except (sqlite3.Error, OSError) as error:
            logger.debug("The cache of file hashes is not used: %s", error)
            if getattr(error, "sqlite_errorcode", None) in DAMAGED:
                self.path.unlink(missing_ok=True)
