"""SOURCES: where X-rays may come from, and how their images are fetched.

Every source becomes tables of one shape. The images stay where they are: a row holds the path of
a file or, for an image that is no file of its own, an address `KIND:WHERE#N`, and `open_images`
fetches them in order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.data.folder_source import list_folder
from pneumonia_hf.data.hub_source import list_hub, read_hub
from pneumonia_hf.data.medmnist_source import list_medmnist, read_medmnist
from pneumonia_hf.data.shard_source import list_shards, read_shards, stat_shards
from pneumonia_hf.data.table import Listing, batches
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.files import expand

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Source:
    """One place that X-rays come from, as the user named it."""

    name: str
    kind: str  # a key of SOURCES
    where: str


@dataclass(frozen=True)
class SourceKind:
    """How one kind of source is listed and its images are fetched."""

    list: Callable[[str], Listing]
    # The bytes of the numbered images of a part, given `WHERE` and ascending numbers.
    read: Callable[[str, Sequence[int]], Iterator[bytes | XrayError]] | None = None
    # Size and times of the files that images are in, which change when those do.
    stat: Callable[[str], tuple[int, int, int]] | None = None


def parse_source(text: str) -> Source:
    """Return the source that `[NAME=][KIND:]WHERE` means; without a kind it is a folder.

    Raises:
        UserError: an unknown kind, or nothing after it.
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
        last = where if kind == "folder" else where.partition("@")[0]
        # Where data lies on this machine is the user's own affair: reports name its last part.
        if kind == "folder" or kind == "shards" or Path(last).exists():
            last = expand(last).resolve().name if "://" not in last else last.rpartition("/")[2]
        name = last if kind == "folder" else f"{kind}-{last}"
        name = re.sub(r"[^\w.-]+", "-", name).strip("-") or kind
    return Source(name, kind, where)


def list_source(source: Source) -> Listing:
    """Return the tables and issues of a source.

    Raises:
        UserError: it is not there, or holds no X-rays of the two classes.
    """
    return SOURCES[source.kind].list(source.where)


def open_images(data: Dataset) -> Iterator[tuple[str, Path | bytes | XrayError]]:
    """Yield each row's name and its image, not yet decoded, in the order of the rows.

    An image is the path of its file, the bytes of one, or the error that kept it from being
    fetched.
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
            read = SOURCES[kind].read(where, [int(number) for _, _, number, _ in group])
            for (_, _, _, name), image in zip(group, read, strict=True):
                yield name, image


def list_addresses(data: Dataset) -> Iterator[str]:
    """Yield the path or address of each row."""
    return (one["path"] for batch in batches(data, "image") for one in batch)


def stat_image(address: str) -> tuple[str, int, int, int] | None:
    """Return an address with the size and times of its file; None where nothing tells them.

    Raises:
        OSError: the file is not there.
    """
    kind, where, _ = _split_address(address)
    if kind == "folder":
        stat = os.stat(address)
        return address, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    summary = SOURCES[kind].stat(where) if SOURCES[kind].stat else None
    return summary and (address, *summary)


def _split_address(path: str) -> tuple[str, str, str]:
    kind, colon, rest = path.partition(":")
    if colon and kind in SOURCES and SOURCES[kind].read is not None:
        where, _, number = rest.rpartition("#")
        return kind, where, number
    return "folder", "", path


SOURCES: dict[str, SourceKind] = {
    "folder": SourceKind(list_folder),
    "hub": SourceKind(list_hub, read_hub),
    "medmnist": SourceKind(list_medmnist, read_medmnist),
    "shards": SourceKind(list_shards, read_shards, stat_shards),
}
