"""The store of decoded images: uint8 at the model's size in a file that all processes map.

A store is a folder for one way of reading and resizing. `pixels.bin` holds the resized images
one after another, `facts.bin` a record for each: the hash of the file that it came from, and what
was seen while it was whole. An image counts from the moment that its record is on the disk, and
pixels are there before: a process that is killed leaves at worst bytes that the next one writes
over. One process builds at a time, the others wait and then find what they need.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.image_stats import FACTS, checksum_of
from pneumonia_hf.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BaseImageProcessor

CACHE_VARIABLE = "PNEUMONIA_HF_CACHE"  # names the folder of the stores
MAPPED = 16 << 20  # bytes read through the map before its pages are given back
# The modules of ours whose code decides how a file becomes pixels and facts.
READING = tuple(
    f"pneumonia_hf.{name}"
    for name in (
        "imaging.read",
        "imaging.dicom",
        "imaging.dicom_display",
        "imaging.modalities",
        "imaging.jpeg_headers",
        "imaging.grayscale",
        "imaging.preprocess",
        "data.image_stats",
        "data.pixel_store",
    )
)


@dataclass(frozen=True)
class XrayPixels:
    """Images of a store: a torch data set of `pixel_values` and `labels`.

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
        """Return gray images as the processor resizes them: uint8 [N, 1, H, W], 0..255."""
        import torch

        if not self.store.mapped:
            self._check_store()
        return torch.from_numpy(self.store.read(self.rows[np.asarray(indices, dtype=np.int64)]))

    def _check_store(self) -> None:
        """Raise if the store was deleted, and maybe built anew, since these rows were found."""
        facts = self.store.facts()
        whole = len(self.rows) == 0 or self.rows.max() < len(facts)
        if not whole or not np.array_equal(
            facts["content"][self.rows, 0], self.hashes.byteswap() if len(facts) else self.hashes
        ):
            raise UserError(
                f"The cache in {self.store.folder} was deleted while it was in use; start again."
            )

    def facts(self, name: str) -> np.ndarray:
        """Return one field of FACTS for every image: [N, ...]."""
        return self.store.facts()[name][self.rows]


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
    def mapped(self) -> bool:
        """Return whether this process has the pixels before it."""
        return self._map is not None

    @property
    def stride(self) -> int:
        """Return the bytes of one image."""
        return self.height * self.width

    def count(self) -> int:
        """Return how many images are whole on the disk."""
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
        """Return a copy of the images at `rows`: uint8 [N, 1, H, W]."""
        if self._map is None or (len(rows) and (rows.max() + 1) * self.stride > len(self._map)):
            with (self.folder / "pixels.bin").open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole = len(self._map) // self.stride
        images = np.frombuffer(self._map, np.uint8, whole * self.stride)
        out = images.reshape(whole, 1, self.height, self.width)[rows]
        del images
        self._read += out.nbytes
        if self._read > MAPPED and hasattr(mmap, "MADV_DONTNEED"):
            # The system keeps the pages for whoever comes next; this process lets them go, so
            # that its memory does not grow with the number of images.
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return out

    def append(self, pixels: np.ndarray, facts: np.ndarray) -> np.ndarray:
        """Add images and return their rows; only the process that holds `lock` may.

        Args:
            pixels: uint8 [N, 1, H, W].
            facts: FACTS [N]; the checksums are filled in.
        """
        start = self.count()
        for one, record in zip(pixels, facts, strict=True):
            record["checksum"] = checksum_of(one, record)
        # Pixels first: a record on the disk is the promise that its pixels are there too.
        _write_at(self.folder / "pixels.bin", start * self.stride, pixels.tobytes())
        _write_at(self.folder / "facts.bin", start * FACTS.itemsize, facts.tobytes())
        return np.arange(start, start + len(facts))

    def whole(self, row: int) -> bool:
        """Return whether the image at `row` is as it was written."""
        facts = self.facts()
        return bool(
            checksum_of(self.read(np.array([row]))[0], facts[row]) == facts[row]["checksum"]
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from building; a lock is freed when its process ends, however."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(
                "Another process is reading images into the cache; waiting for it.",
                file=sys.stderr,
                flush=True,
            )
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


class StoreIndex:
    """Where each image of a store is, by its content."""

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
    for name in READING:
        # A module that has moved is an error here: passed over, it would keep stale pixels.
        digest.update(Path(import_module(name).__file__).read_bytes())
    for package in ("pillow", "pydicom", "python-gdcm", "torchvision", "torch", "ImageHash"):
        try:
            digest.update(f"{package} {version(package)}".encode())
        except PackageNotFoundError:
            digest.update(package.encode())
    return digest.hexdigest()


def _write_at(path: Path, place: int, data: bytes) -> None:
    """Write `data` at `place` and see it onto the disk; the file is made if there is none."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        file.seek(place)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
