"""Pictures decoded once: uint8 at the model's size in a file that all processes map.

A store is a folder for one way of reading and resizing. `pixels.bin` holds the resized pictures
one after another, `facts.bin` a record for each: the hash of the file that it came from, and what
was seen while it was whole. A picture counts from the moment that its record is on the disk, and
pixels are there before: a process that is killed leaves at worst bytes that the next one writes
over. One process builds at a time, the others wait and then find what they need.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import sqlite3
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data import LABELS, tell_troubles, troubles_of
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.preprocess import resize
from pneumonia_hf.sources import (
    Trouble,
    column,
    list_addresses,
    open_pictures,
    stat_picture,
    take,
)
from pneumonia_hf.xray import read_xray

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from PIL import Image
    from torch import Tensor
    from transformers import BaseImageProcessor

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "PNEUMONIA_HF_CACHE"  # names the folder of the stores
CHUNK = 64  # pictures decoded and written at a time
MAPPED = 16 << 20  # bytes read through the map before its pages are given back
SEGMENTS = 8  # of each side of the border
BORDER = 0.04  # width of the border strips, as a share of the side

# What is kept of each picture beside its pixels. Shares are of all pixels of the whole picture.
FACTS = np.dtype(
    [
        ("content", "<u8", 2),  # hash of the file's bytes
        ("pixels", "<u8", 2),  # hash of the decoded picture
        ("phash", "<u8", 4),  # perceptual hash, 256 bits
        ("width", "<u4"),
        ("height", "<u4"),
        ("mean", "<f4"),  # of the grey levels, 0..255
        ("std", "<f4"),
        ("black", "<f4"),  # share of levels 0 and 1
        ("white", "<f4"),  # share of levels 254 and 255
        ("coloured", "<u1"),
        ("mode", "S19"),  # as stored in the file
        ("format", "S8"),
        ("border", "<u1", 4 * SEGMENTS),  # mean level along the four sides
        ("checksum", "<u4"),  # CRC-32 of the pixels and of the record above
    ]
)


@dataclass(frozen=True)
class XrayPixels:
    """Pictures of a store: a torch data set of `pixel_values` and `labels`.

    It is small and can be sent to other processes; each maps the file for itself.
    """

    store: PixelStore
    rows: np.ndarray  # int64 [N], places in the store
    labels: np.ndarray  # int64 [N]
    hashes: np.ndarray  # uint64 [N], of the files' bytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "pixel_values": self.pixels([index])[0],
            "labels": int(self.labels[index]),
        }

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a whole batch at once, as torch's loaders ask for it."""
        import torch

        return {
            "pixel_values": self.pixels(indices),
            "labels": torch.from_numpy(self.labels[np.asarray(indices)]),
        }

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Return grey pictures as the processor resizes them: uint8 [N, 1, H, W], 0..255."""
        import torch

        return torch.from_numpy(self.store.read(self.rows[np.asarray(indices, dtype=np.int64)]))

    def facts(self, name: str) -> np.ndarray:
        """Return one field of FACTS for every picture: [N, ...]."""
        return self.store.facts()[name][self.rows]


@dataclass(frozen=True)
class Decoded:
    """What came of reading a table of X-rays."""

    part: XrayPixels
    kept: np.ndarray  # int64 [N]: the rows of the table that could be read, in order
    troubles: tuple[Trouble, ...]  # one for each that could not


class PixelStore:
    """The folder of one way of reading and resizing."""

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.folder = folder
        self.height, self.width = height, width
        self._map: mmap.mmap | None = None
        self._read = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None, "_read": 0}

    @property
    def stride(self) -> int:
        """Return the bytes of one picture."""
        return self.height * self.width

    def count(self) -> int:
        """Return how many pictures are whole on the disk."""
        return min(
            _size(self.folder / "facts.bin") // FACTS.itemsize,
            _size(self.folder / "pixels.bin") // self.stride,
        )

    def facts(self) -> np.ndarray:
        """Return the records, mapped from the disk: FACTS [count]."""
        count = self.count()
        if not count:
            return np.zeros(0, FACTS)
        return np.memmap(self.folder / "facts.bin", FACTS, "r", shape=(count,))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of the pictures at `rows`: uint8 [N, 1, H, W]."""
        if self._map is None or (len(rows) and (rows.max() + 1) * self.stride > len(self._map)):
            with (self.folder / "pixels.bin").open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole = len(self._map) // self.stride
        pictures = np.frombuffer(self._map, np.uint8, whole * self.stride)
        out = pictures.reshape(whole, 1, self.height, self.width)[rows]
        del pictures
        self._read += out.nbytes
        if self._read > MAPPED and hasattr(mmap, "MADV_DONTNEED"):
            # The system keeps the pages for whoever comes next; this process lets them go, so
            # that its memory does not grow with the number of pictures.
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return out

    def append(self, pixels: np.ndarray, facts: np.ndarray) -> np.ndarray:
        """Add pictures and return their rows; only the process that holds `lock` may.

        Args:
            pixels: uint8 [N, 1, H, W].
            facts: FACTS [N]; the checksums are filled in.
        """
        start = self.count()
        for one, record in zip(pixels, facts, strict=True):
            record["checksum"] = _checksum(one, record)
        # Pixels first: a record on the disk is the promise that its pixels are there too.
        _write_at(self.folder / "pixels.bin", start * self.stride, pixels.tobytes())
        _write_at(self.folder / "facts.bin", start * FACTS.itemsize, facts.tobytes())
        return np.arange(start, start + len(facts))

    def whole(self, row: int) -> bool:
        """Return whether the picture at `row` is as it was written."""
        facts = self.facts()
        return bool(_checksum(self.read(np.array([row]))[0], facts[row]) == facts[row]["checksum"])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from building; a lock is freed when its process ends, however."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(
                "Another process is reading pictures into the cache; waiting for it.",
                file=sys.stderr,
                flush=True,
            )
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


class _Index:
    """Where each picture of a store is, by its content."""

    def __init__(self, store: PixelStore) -> None:
        content = np.array(store.facts()["content"])
        # Of two records of one content the later one counts: it mends the earlier.
        content = content[::-1]
        self.rows = np.argsort(content[:, 0], kind="stable")
        self.high, self.low = content[self.rows, 0], content[self.rows, 1]
        self.rows = len(content) - 1 - self.rows
        self.added: dict[bytes, int] = {}

    def find(self, content: bytes) -> int | None:
        if content in self.added:
            return self.added[content]
        high, low = np.frombuffer(content, "<u8")
        at = np.searchsorted(self.high, high)
        if at < len(self.high) and self.high[at] == high and self.low[at] == low:
            return int(self.rows[at])
        return None


def decode(
    data: Dataset,
    processor: BaseImageProcessor,
    name: str = "",
    cache_dir: str | Path | None = None,
) -> Decoded:
    """Return the pictures of `data` at the model's size, reading those that no store holds yet.

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
    memory = _HashMemory(store.folder.parent)
    found = _Found(len(data))
    missing = _look_up(data, store, memory, found)
    if missing:
        with store.lock():
            _build(data, processor, store, memory, found, name)
    kept = np.flatnonzero(found.rows >= 0)
    part = XrayPixels(
        store,
        rows=found.rows[kept],
        labels=column(data, "label").to_numpy().astype(np.int64)[kept],
        hashes=found.hashes[kept],
    )
    return Decoded(part, kept, tuple(found.troubles))


def read_parts(
    data: DatasetDict,
    processor: BaseImageProcessor,
    cache_dir: str | Path | None = None,
    strict: bool = False,
) -> tuple[DatasetDict, dict[str, XrayPixels]]:
    """Return the parts without what cannot be read, and their pictures at the model's size.

    What cannot be read is logged with its reason, and joins the troubles of the parts.

    Raises:
        UserError: nothing readable is left of a class; with `strict`, anything unreadable.
    """
    from datasets import DatasetDict

    decoded: dict[str, Decoded] = {
        name: decode(part, processor, name, cache_dir) for name, part in data.items()
    }
    unreadable = [trouble for one in decoded.values() for trouble in one.troubles]
    tell_troubles(unreadable, strict)
    kept = DatasetDict(
        {
            name: take(part, decoded[name].kept) if decoded[name].troubles else part
            for name, part in data.items()
        }
    )
    kept.troubles = (*troubles_of(data), *unreadable)
    if not any(len(one.part) for one in decoded.values()):
        raise UserError(f"No picture can be read: {unreadable[0].file}, {unreadable[0].reason}.")
    for name, one in decoded.items():
        lacking = [label for number, label in enumerate(LABELS) if number not in one.part.labels]
        if lacking and name in ("train", "validation"):
            raise UserError(
                f"No picture of {lacking[0]} in the {name} part can be read: "
                f"{one.troubles[0].file}, {one.troubles[0].reason}."
            )
    return kept, {name: one.part for name, one in decoded.items()}


class _Found:
    def __init__(self, count: int) -> None:
        self.rows = np.full(count, -1, np.int64)
        self.hashes = np.zeros(count, np.uint64)
        self.troubles: list[Trouble] = []


def _look_up(data: Dataset, store: PixelStore, memory: _HashMemory, found: _Found) -> bool:
    """Find what the store holds already without opening a picture; return whether more is needed.

    A picture whose file is known by name, size and times is not opened. The bytes of all others
    have to be read, which is left to `_build`.
    """
    index = _Index(store)
    facts = store.facts()
    addresses, start = list_addresses(data), 0
    while chunk := list(islice(addresses, 1000)):
        for offset, content in enumerate(memory.recall(chunk)):
            row = index.find(content) if content else None
            if row is None:
                return True
            # What the disk gives back is what was written: 50 KB take some 50 microseconds.
            picture = store.read(np.array([row]))[0]
            if _checksum(picture, facts[row]) != facts[row]["checksum"]:
                return True
            found.rows[start + offset] = row
            found.hashes[start + offset] = _short(content)
        start += len(chunk)
    return False


def _build(
    data: Dataset,
    processor: BaseImageProcessor,
    store: PixelStore,
    memory: _HashMemory,
    found: _Found,
    name: str,
) -> None:
    """Read what the store lacks, in parallel, and write it as it comes."""
    from tqdm.auto import tqdm

    index = _Index(store)  # anew: another process may have built while this one waited

    def submit(pool: ThreadPoolExecutor, tasks: list) -> list:
        known = memory.recall([address for address, _ in tasks])
        return [
            pool.submit(_read_one, address, *picture, content, store, index)
            for (address, picture), content in zip(tasks, known, strict=True)
        ]

    tasks = zip(list_addresses(data), open_pictures(data), strict=True)
    with (
        ThreadPoolExecutor(_cores()) as pool,
        tqdm(total=len(data), desc=f"Reading {name}".strip(), unit="image", leave=False) as bar,
    ):
        at, futures = 0, submit(pool, list(islice(tasks, CHUNK)))
        while futures:
            # The next chunk is read while this one is resized and written.
            later = submit(pool, list(islice(tasks, CHUNK)))
            readings = [future.result() for future in futures]
            _keep(readings, at, processor, store, index, found)
            memory.remember(readings)
            at += len(readings)
            bar.update(len(readings))
            futures = later


@dataclass
class _Reading:
    """What came of one picture: a row of the store, a picture to be added, or a trouble."""

    name: str
    content: bytes = b""
    row: int | None = None
    picture: Image.Image | None = None
    facts: np.ndarray | None = None
    trouble: str = ""
    stat: tuple[str, int, int, int] | None = None  # of its file: path, size, times


def _read_one(
    address: str,
    name: str,
    source: Path | bytes | XrayError,
    known: bytes | None,
    store: PixelStore,
    index: _Index,
) -> _Reading:
    """Read one picture, unless the content that its file is known to have is in the store."""
    row = index.find(known) if known else None
    if row is not None and store.whole(row):
        return _Reading(name, known, row=row)
    if isinstance(source, XrayError):
        return _Reading(name, trouble=_reason(source, name))
    try:
        stat = stat_picture(address)
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        return _Reading(name, trouble=f"it cannot be opened: {error.strerror}")
    content = hashlib.sha256(data).digest()[:16]
    row = index.find(content)
    if row is not None and store.whole(row):
        return _Reading(name, content, row=row, stat=stat)
    try:
        picture = read_xray(data, name)
    except XrayError as error:
        return _Reading(name, content, trouble=_reason(error, name))
    return _Reading(name, content, picture=picture, facts=_describe(picture), stat=stat)


def _keep(
    readings: list[_Reading],
    at: int,
    processor: BaseImageProcessor,
    store: PixelStore,
    index: _Index,
    found: _Found,
) -> None:
    """Write the new pictures of a chunk, and note where each is."""
    new: dict[bytes, _Reading] = {}
    for reading in readings:
        if reading.picture is not None:
            new.setdefault(reading.content, reading)
    if new:
        pixels = resize([one.picture for one in new.values()], processor).numpy()
        facts = np.stack([one.facts for one in new.values()])
        facts["content"] = [np.frombuffer(content, "<u8") for content in new]
        facts["border"] = _describe_border(pixels[:, 0])
        index.added |= dict(zip(new, store.append(pixels, facts).tolist(), strict=True))
    for offset, reading in enumerate(readings, start=at):
        if reading.trouble:
            found.troubles.append(Trouble("unreadable", reading.name, reading.trouble))
            continue
        row = index.added.get(reading.content, reading.row)
        found.rows[offset] = row
        found.hashes[offset] = _short(reading.content)


def _describe(picture: Image.Image) -> np.ndarray:
    """Return what is kept of a whole picture, as a record of FACTS."""
    import imagehash

    record = np.zeros((), FACTS)
    counts = np.asarray(picture.histogram(), dtype=np.float64)
    levels, total = np.arange(256.0), counts.sum()
    mean = float(counts @ levels / total)
    size = f"{picture.width}x{picture.height}".encode()
    digest = hashlib.blake2b(picture.tobytes(), digest_size=16, key=size).digest()
    record["pixels"] = np.frombuffer(digest, "<u8")
    # 16 x 16 frequencies: with the usual 8 x 8, different chests have the same hash.
    bits = imagehash.phash(picture, hash_size=16).hash
    record["phash"] = np.packbits(bits).view("<u8")
    record["width"], record["height"] = picture.size
    record["mean"] = mean
    record["std"] = np.sqrt(counts @ (levels - mean) ** 2 / total)
    record["black"], record["white"] = counts[:2].sum() / total, counts[254:].sum() / total
    record["coloured"] = bool(picture.info.get("coloured"))
    record["mode"] = str(picture.info.get("mode", picture.mode)).encode()[:19]
    record["format"] = str(picture.info.get("format", "")).encode()[:8]
    return record


def _describe_border(pixels: np.ndarray) -> np.ndarray:
    """Return the mean level along the four sides of pictures [N, H, W]: uint8 [N, 4 * SEGMENTS]."""
    _, height, width = pixels.shape
    y, x = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    profiles = [
        pixels[:, :y].mean(axis=1),
        pixels[:, -y:].mean(axis=1),
        pixels[:, :, :x].mean(axis=2),
        pixels[:, :, -x:].mean(axis=2),
    ]
    means = [
        part.mean(axis=1) for side in profiles for part in np.array_split(side, SEGMENTS, axis=1)
    ]
    return np.round(np.stack(means, axis=1)).astype(np.uint8)


# ------------------------------------------------------------------------------------ files


def open_store(processor: BaseImageProcessor, cache_dir: str | Path | None = None) -> PixelStore:
    """Return the store for a processor's resize, making its folder if there is none.

    Raises:
        UserError: the folder cannot be made.
    """
    size = processor.size
    settings = {
        "reading": _hash_of_reading(),
        "resize": {"height": size["height"], "width": size["width"]},
        "resample": int(processor.resample),
        "facts": str(FACTS),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder(cache_dir) / f"{size['height']}x{size['width']}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise UserError(
            f"The cache folder {folder} cannot be written ({error.strerror}); "
            f"name another with --cache_dir or ${CACHE_VARIABLE}."
        ) from error
    return PixelStore(folder, size["height"], size["width"])


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of the stores."""
    named = cache_dir or os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pneumonia-hf"


@lru_cache(maxsize=1)
def _hash_of_reading() -> str:
    """Return a hash of all that decides how a file becomes pixels: our code and the decoders."""
    from importlib.metadata import PackageNotFoundError, version

    digest = hashlib.sha256()
    for name in ("xray", "dicom", "grey", "codestream", "preprocess", "cache"):
        file = Path(__file__).with_name(f"{name}.py")
        digest.update(file.read_bytes() if file.exists() else b"")
    for package in ("pillow", "pydicom", "python-gdcm", "torchvision", "torch", "ImageHash"):
        try:
            digest.update(f"{package} {version(package)}".encode())
        except PackageNotFoundError:
            digest.update(package.encode())
    return digest.hexdigest()


def hash_pictures(data: Dataset, cache_dir: str | Path | None = None) -> np.ndarray:
    """Return the hash of each row's bytes, 0 for those that cannot be had: uint64 [N].

    Files that did not change since they were hashed are not opened.
    """
    memory = _HashMemory(cache_folder(cache_dir))
    hashes, at = np.zeros(len(data), np.uint64), 0
    addresses = list_addresses(data)
    while chunk := list(islice(addresses, 1000)):
        for offset, content in enumerate(memory.recall(chunk), start=at):
            hashes[offset] = _short(content) if content else 0
        at += len(chunk)
    if hashes.all():
        return hashes

    def hash_one(
        address: str, picture: tuple[str, Path | bytes | XrayError], known: bytes | None
    ) -> _Reading:
        name, source = picture
        if known:
            return _Reading(name, known)
        try:
            if isinstance(source, XrayError):
                raise source
            stat = stat_picture(address)
            data = source if isinstance(source, bytes) else source.read_bytes()
        except (OSError, XrayError) as error:
            return _Reading(name, trouble=str(error))
        return _Reading(name, hashlib.sha256(data).digest()[:16], stat=stat)

    tasks, at = zip(list_addresses(data), open_pictures(data), strict=True), 0
    with ThreadPoolExecutor(_cores()) as pool:
        while chunk := list(islice(tasks, 1000)):
            known = memory.recall([address for address, _ in chunk])
            readings = list(pool.map(hash_one, *zip(*chunk, strict=True), known))
            for offset, reading in enumerate(readings, start=at):
                hashes[offset] = _short(reading.content) if reading.content else 0
            memory.remember(readings)
            at += len(readings)
    return hashes


def to_hex(hashes: np.ndarray) -> list[str]:
    """Return 16 hex digits for each hash: the first of the file's SHA-256."""
    return [int(one).to_bytes(8, "big").hex() for one in hashes]


def from_hex(hashes: Sequence[str]) -> np.ndarray:
    """Return the hashes that `to_hex` wrote."""
    return np.array([int(one, 16) for one in hashes], dtype=np.uint64)


class _HashMemory:
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

    def recall(self, addresses: Sequence[str]) -> list[bytes | None]:
        """Return the content hash of each picture whose file is as it was, None for the others."""
        if not self.path.exists():
            return [None] * len(addresses)
        contents: list[bytes | None] = []
        try:
            with self._connect() as base:
                for address in addresses:
                    try:
                        stat = stat_picture(address)
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

    def remember(self, readings: Sequence[_Reading]) -> None:
        """Note the contents of files that were just read."""
        now = time.time_ns() - int(self.SETTLED * 1e9)
        rows = [
            (*reading.stat, reading.content)
            for reading in readings
            if reading.stat and max(reading.stat[2:]) < now
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


def _write_at(path: Path, place: int, data: bytes) -> None:
    """Write `data` at `place` and see it onto the disk; the file is made if there is none."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        file.seek(place)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def _checksum(pixels: np.ndarray, record: np.void) -> int:
    offset = FACTS.fields["checksum"][1]
    return zlib.crc32(record.tobytes()[:offset], zlib.crc32(pixels.tobytes()))


def _short(content: bytes) -> int:
    return int.from_bytes(content[:8], "big")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _reason(error: XrayError, name: str) -> str:
    """Return an error's sentence without the name that it begins with."""
    return str(error).removeprefix(f"{name} ").rstrip(".")


def _cores() -> int:
    """Return how many cores this process may use."""
    able = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(able(0)) if able else os.cpu_count() or 1
