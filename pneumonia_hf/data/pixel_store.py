"""Store decoded images at the model's size in a memory-mapped file.

A store is a folder for one version of the decoding code and one image size. `pixels.bin` holds
the images one after another, uint8, and `facts.bin` a record of FACTS for each. Pixels are
written before their record, and an image exists once its record does: a killed process leaves
only bytes that the next one overwrites. One process writes at a time; the others wait. Records
are appended: a manifest in JSON would be written anew with each 64 images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.image_stats import FACTS, compute_checksum
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import hold_lock

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BaseImageProcessor

CACHE_VARIABLE = "PNEUMONIA_HF_CACHE"  # environment variable with the cache folder
_chosen: ContextVar[str | Path | None] = ContextVar("cache folder", default=None)
MAPPED = 16 << 20  # bytes read through a map before the file is mapped anew
CHECKED = 256  # images whose checksums are computed at once
# The modules whose code determines pixels and facts.
_MODULES = "read xray dicom dicom_display modalities jpeg_headers grayscale preprocess".split()
READING = (
    *(f"pneumonia_hf.imaging.{name}" for name in _MODULES),
    "pneumonia_hf.data.image_stats",
    "pneumonia_hf.data.pixel_store",
)
# The packages whose versions do, as far as they are installed.
PACKAGES = "numpy pillow pydicom python-gdcm transformers torchvision torch ImageHash".split()
# The settings of a processor that act on cached pixels, and not before.
OF_NORMALISE = {"do_normalize", "do_rescale", "image_mean", "image_std", "rescale_factor"}


@dataclass(frozen=True)
class XrayPixels:
    """Images of a store: a torch dataset of `pixel_values` and `labels`.

    A pickle of it is small: each process maps the file itself.
    """

    store: PixelStore
    rows: np.ndarray  # int64 [N], rows of the store
    labels: np.ndarray  # int64 [N]
    hashes: np.ndarray  # uint64 [N], of the files' bytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a whole batch, as torch's loaders request it."""
        import torch

        return {
            "pixel_values": self.pixels(indices),
            "labels": torch.from_numpy(self.labels[np.asarray(indices)]),
        }

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Return gray images at the model's size: uint8 [N, 1, H, W], 0..255.

        Raises:
            UserError: the store was deleted or rebuilt since these rows were found.
        """
        import torch

        indices = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(self.store.read(self.rows[indices], self.hashes[indices]))

    def facts(self, name: str) -> np.ndarray:
        """Return one field of FACTS for every image: [N, ...]."""
        return self.store.facts()[name][self.rows]


class PixelStore:
    """The folder of one store."""

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.folder = folder
        self.height, self.width = height, width
        self._pixels: np.memmap | None = None  # of this process
        self._left = 0  # images to read from it

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}

    def count(self) -> int:
        """Return the number of complete images."""
        return min(
            _size(self.folder / "facts.bin") // FACTS.itemsize,
            _size(self.folder / "pixels.bin") // (self.height * self.width),
        )

    def facts(self) -> np.ndarray:
        """Return the memory-mapped records: FACTS [count]."""
        count = self.count()
        if not count:  # an empty file cannot be mapped
            return np.zeros(0, FACTS)
        return np.memmap(self.folder / "facts.bin", FACTS, "r", shape=(count,))

    def read(self, rows: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Return a copy of the images at `rows`, of files with these hashes: uint8 [N, 1, H, W].

        Raises:
            UserError: the store was deleted or rebuilt since these rows were found.
        """
        last = rows.max(initial=-1)
        if self._pixels is None or self._left <= 0 or last >= len(self._pixels):
            # Mapped anew from time to time: so the process gives back the pages that it has read
            # (the system still caches them), and its memory does not grow with the images.
            facts = self.facts()
            if last >= len(facts) or np.any(facts["content"][rows] != hashes):
                raise UserError(
                    f"The cache in {self.folder} was deleted while in use; start again."
                )
            shape = (len(facts), 1, self.height, self.width)
            self._pixels = np.memmap(self.folder / "pixels.bin", np.uint8, "r", shape=shape)
            self._left = MAPPED // (self.height * self.width)
        self._left -= len(rows)
        return self._pixels[rows]

    def append(self, pixels: np.ndarray, facts: np.ndarray) -> np.ndarray:
        """Append images and return their rows; the caller must hold `lock`.

        Args:
            pixels: uint8 [N, 1, H, W].
            facts: FACTS [N]; the checksums are set here.
        """
        start = self.count()
        for one, record in zip(pixels, facts, strict=True):
            record["checksum"] = compute_checksum(one, record)
        # Pixels first: a record guarantees that its pixels are on the disk.
        place = start * self.height * self.width
        _write_at(self.folder / "pixels.bin", place, pixels.tobytes())
        _write_at(self.folder / "facts.bin", start * FACTS.itemsize, facts.tobytes())
        return np.arange(start, start + len(facts))

    def index(self) -> dict[int, int]:
        """Return the row of each image by the hash of its file."""
        # Of two records with one hash, the later replaces a damaged image.
        return {content: row for row, content in enumerate(self.facts()["content"].tolist())}

    def find(self, hashes: Iterable[int], index: dict[int, int]) -> np.ndarray:
        """Return the row of each image, -1 for what is missing or damaged: int64 [N].

        The checksum takes about 50 microseconds for 50 KB.
        """
        facts = self.facts()
        rows = np.array([index.get(int(content), -1) for content in hashes], np.int64)
        known = np.flatnonzero(rows >= 0)
        for start in range(0, len(known), CHECKED):
            batch = known[start : start + CHECKED]
            records = facts[rows[batch]]
            images = self.read(rows[batch], records["content"])
            for at, image, record in zip(batch, images, records, strict=True):
                if compute_checksum(image, record) != record["checksum"]:
                    rows[at] = -1
        return rows

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing; the lock is released when the process ends."""
        busy = "Another process is writing images to the cache; waiting for it."
        return hold_lock(self.folder / "lock", busy, wait=True)


def open_store(processor: BaseImageProcessor) -> PixelStore:
    """Return the store for what a processor's resize returns, and create its folder.

    Raises:
        UserError: the folder cannot be written.
    """
    size = processor.size
    # The class and each of its settings may change the pixels, but not those of `normalise`.
    settings = {k: v for k, v in processor.to_dict().items() if k not in OF_NORMALISE}
    settings |= {"class": type(processor).__name__}
    settings |= {"reading": _hash_of_reading(), "facts": str(FACTS)}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{size['height']}x{size['width']}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise UserError(
            f"The cache folder {folder} cannot be written ({error.strerror}); "
            f"set another with --cache_dir or ${CACHE_VARIABLE}."
        ) from error
    return PixelStore(folder, size["height"], size["width"])


@contextmanager
def cache_in(folder: str | Path | None) -> Iterator[None]:
    """Cache in `folder` whatever is cached within the block; None changes nothing.

    All that takes a `cache_dir` does so for all that it calls: no function can forget to pass it.
    """
    token = _chosen.set(folder or _chosen.get())
    try:
        yield
    finally:
        _chosen.reset(token)


def cache_folder() -> Path:
    """Return the folder of all caches: that of `cache_in`, $PNEUMONIA_HF_CACHE, or the default."""
    if folder := _chosen.get() or os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pneumonia-hf"


@lru_cache(maxsize=1)
def _hash_of_reading() -> str:
    """Return a hash of the code that determines the pixels: ours, and the decoders' versions."""
    from importlib.metadata import PackageNotFoundError, version

    digest = hashlib.sha256()
    for name in READING:
        # A missing module must be an error: without it, stale pixels would be used.
        digest.update(Path(import_module(name).__file__).read_bytes())
    for package in PACKAGES:
        try:
            digest.update(f"{package} {version(package)}".encode())
        except PackageNotFoundError:
            digest.update(package.encode())
    return digest.hexdigest()


def _write_at(path: Path, place: int, data: bytes) -> None:
    """Write `data` at offset `place` and sync it; create the file if needed."""
    path.touch()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
