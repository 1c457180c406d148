"""SOURCES: the kinds of data sources, and how their images are read.

Every source becomes tables with the same columns. Images are not copied: a row has the path of a
file or an address `KIND:WHERE#N`, and `open_images` reads them in order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.data.folder_source import list_folder, list_one_vs_rest
from pneumonia_hf.data.hub_source import list_hub, read_hub
from pneumonia_hf.data.medmnist_source import list_medmnist, read_medmnist
from pneumonia_hf.data.shard_source import list_shards, read_shards, stat_shards
from pneumonia_hf.data.table import XrayData, batches
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.files import expand

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Source:
    """A data source as the user named it."""

    name: str
    kind: str  # a key of SOURCES
    where: str

    @property
    def is_folder(self) -> bool:
        """Whether `where` is a local folder of files."""
        return self.kind in FOLDERS


@dataclass(frozen=True)
class SourceKind:
    """The functions of one kind of source."""

    list: Callable[[str], XrayData]
    # Reads the numbered images of `WHERE`; None: the images are files.
    read: Callable[[str, Sequence[int]], Iterator[bytes | XrayError]] | None = None
    # Size and times of the files of `WHERE`, which change when the images do.
    stat: Callable[[str], tuple[int, int, int]] | None = None


def parse_source(text: str) -> Source:
    """Parse `[NAME=][KIND:]WHERE`; the default kind is a folder.

    Raises:
        UserError: an unknown kind, or no `WHERE`.
    """
    name, equals, rest = text.partition("=")
    if not equals or not re.fullmatch(r"[\w. -]+", name) or Path(text).exists():
        name, rest = "", text
    kind, colon, where = rest.partition(":")
    if not colon or len(kind) == 1 or Path(rest).exists():  # one letter is a Windows drive
        kind, where = "folder", rest
    if kind not in SOURCES:
        raise UserError(f"Unknown kind of source {kind!r} in {text!r}; choose from {[*SOURCES]}.")
    if not where:
        raise UserError(f"{text!r} names no data; give {kind}:WHERE.")
    if not name:
        last = where if kind in FOLDERS else where.partition("@")[0]
        # Local paths are private: reports get only the last component.
        if kind in FOLDERS or kind == "shards" or Path(last).exists():
            last = expand(last).resolve().name if "://" not in last else last.rpartition("/")[2]
        name = last if kind in FOLDERS else f"{kind}-{last}"
        name = re.sub(r"[^\w.-]+", "-", name).strip("-") or kind
    return Source(name, kind, where)


def open_images(data: Dataset) -> Iterator[tuple[str, Path | bytes | XrayError]]:
    """Yield the name and the encoded image of each row, in order.

    An image is the path of its file, its bytes, or the error that occurred when it was fetched.
    """
    names = (name for batch in batches(data, "file") for name in batch)
    paths = list_addresses(data)
    rows = ((*_split_address(path), name) for path, name in zip(paths, names, strict=True))
    for (kind, where), group in groupby(rows, key=lambda row: row[:2]):
        if kind == "folder":
            for _, _, path, name in group:
                yield name, Path(path)
        else:
            group = list(group)
            images = SOURCES[kind].read(where, [int(number) for _, _, number, _ in group])
            yield from zip((name for *_, name in group), images, strict=True)


def list_addresses(data: Dataset) -> Iterator[str]:
    """Yield the path or address of each row."""
    return (one["path"] for batch in batches(data, "image") for one in batch)


def stat_image(address: str) -> tuple[str, int, int, int] | None:
    """Return an address with the size and times of its file, or None if they are unknown.

    Raises:
        OSError: the file does not exist.
    """
    kind, where, _ = _split_address(address)
    if kind == "folder":
        stat = os.stat(address)
        return address, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    stat = SOURCES[kind].stat(where) if SOURCES[kind].stat else None
    return stat and (address, *stat)


def _split_address(path: str) -> tuple[str, str, str]:
    kind, colon, rest = path.partition(":")
    if colon and kind in SOURCES and SOURCES[kind].read is not None:
        where, _, number = rest.rpartition("#")
        return kind, where, number
    return "folder", "", path


FOLDERS = ("folder", "one_vs_rest")
SOURCES: dict[str, SourceKind] = {
    "folder": SourceKind(list_folder),
    "one_vs_rest": SourceKind(list_one_vs_rest),
    "hub": SourceKind(list_hub, read_hub),
    "medmnist": SourceKind(list_medmnist, read_medmnist),
    "shards": SourceKind(list_shards, read_shards, stat_shards),
}
