"""The source `shards:PATH_OR_URL`: Parquet or WebDataset shards."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.data.dataset_rows import (
    find_image_column,
    first_line,
    iterate_rows,
    keep_encoded,
    list_rows,
    to_bytes,
)
from pneumonia_hf.data.table import ALL, SPLIT_NAMES, XrayData
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.files import expand

if TYPE_CHECKING:
    from datasets import IterableDataset


# What file systems say of a file that changes when it does.
MARKS = ("ETag", "etag", "LastModified", "mtime", "created", "xet_hash", "blob_id")


def list_shards(where: str) -> XrayData:
    """List local or remote Parquet (`.parquet`) or WebDataset (`.tar`) shards by streaming them.

    `where` holds paths or URLs, with `*` as a wildcard and `,` as separator. No file is stored:
    labels are streamed now, and images when they are read. File names give the splits
    (`train-000.tar`, `test-000.tar`); files without one form the split `all`.
    """
    listing = XrayData()
    for split, files in find_shards(where).items():
        data, names = stream_files(tuple(files), labels_only=True), _stream_names(tuple(files))
        list_rows(data, f"shards:{'|'.join(files)}", split, where, listing, names)
    return listing


def read_shards(where: str, numbers: Sequence[int]) -> Iterator[bytes | XrayError]:
    """Yield the bytes of the numbered images, in one pass if the numbers ascend.

    Raises:
        UserError: a damaged shard or a network error ended the stream.
    """
    files = tuple(where.split("|"))
    data = stream_files(files)
    image = find_image_column(data.features, files[0])
    data = keep_encoded(data.select_columns(image), image)
    at, rows = 0, iterate_rows(data, files[0])
    for number in numbers:
        if number < at:
            at, rows = 0, iterate_rows(data, files[0])
        row = next(islice(rows, number - at, None), None)
        at = number + 1
        if row is None:
            yield XrayError("The dataset ended before this image; was it changed?")
        else:
            yield to_bytes(row[image])


def stat_shards(where: str) -> tuple[int, int, int] | None:
    """Return the size and times of all shards of a split, or None if they are unknown."""
    return _stat_files(tuple(where.split("|")), int(time.monotonic() // 60))


@lru_cache(maxsize=64)
def _stat_files(files: tuple[str, ...], _minute: int) -> tuple[int, int, int] | None:
    import fsspec

    size, times, marks = 0, [0], []
    for file in files:
        try:
            system, inner = fsspec.url_to_fs(file)
            info = system.info(inner)
        except Exception:
            return None  # file systems raise many types; reading reports the error
        found = [info[key] for key in MARKS if info.get(key)]
        if not found or not info.get("size"):
            return None
        size += info["size"]
        marks.append(found)
        times += [int(one * 1e9) for one in found if isinstance(one, float)]  # of local files
    # Any value that changes when one of the files does.
    digest = hashlib.sha256(repr(marks).encode()).digest()
    return size, max(times), int.from_bytes(digest[:6], "big")


def find_shards(where: str) -> dict[str, list[str]]:
    """Return the files of `where` by split."""
    import fsspec

    files: list[str] = []
    for pattern in where.split(","):
        pattern = pattern.strip()
        if "://" not in pattern:
            pattern = str(expand(pattern).absolute())
        if "*" in pattern:
            try:
                system, inner = fsspec.url_to_fs(pattern)
                files += [system.unstrip_protocol(one) for one in sorted(system.glob(inner))]
            except Exception as error:  # file systems raise many types
                raise UserError(f"{pattern} cannot be listed: {error}.") from error
        else:
            files.append(pattern)
    files = [one.removeprefix("file://") for one in files]
    kinds = {Path(one.partition("?")[0]).suffix.lower() for one in files}
    if len(kinds) != 1 or not kinds <= {".parquet", ".tar"}:
        if not files:
            raise UserError(f"There is no such file as {where}; check --data_dir.")
        found = ", ".join(one or "no extension" for one in sorted(kinds))
        raise UserError(
            f"{where} must name Parquet (.parquet) or WebDataset (.tar) files of one format, "
            f"but has {found}."
        )
    splits: dict[str, list[str]] = {}
    for one in files:
        words = re.split(r"[^a-z]+", one.rpartition("/")[2].lower())
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), ALL)
        splits.setdefault(split, []).append(one)
    if ALL in splits and len(splits) > 1:
        raise UserError(
            f"Some shards of {where} name their split and some do not ({splits[ALL][0]}); "
            f"rename them, or give them as separate sources."
        )
    return splits


def stream_files(files: tuple[str, ...], labels_only: bool = False) -> IterableDataset:
    from datasets import load_dataset

    from pneumonia_hf.hub import explain_data_error

    kind = "parquet" if ".parquet" in files[0] else "webdataset"
    options = {"path": kind, "data_files": {"x": list(files)}, "split": "x", "streaming": True}
    try:
        data = load_dataset(**options)
        if not labels_only:
            return data
        image = find_image_column(data.features, files[0])
        if kind == "webdataset":
            return data.remove_columns(image)
        # With `columns`, no image is downloaded for its label.
        return load_dataset(**options, columns=[name for name in data.features if name != image])
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain_data_error(error, files[0], None)) from error


def _stream_names(files: tuple[str, ...]) -> list[str] | None:
    """Return the file names stored with the images of Parquet shards, or None without any."""
    import fsspec
    import pyarrow.parquet as pq

    if ".parquet" not in files[0]:
        return None
    names: list[str] = []
    image = find_image_column(stream_files(files).features, files[0])
    for file in files:
        try:
            with fsspec.open(file, "rb").open() as opened, pq.ParquetFile(opened) as table:
                # One leaf of the struct: no image is downloaded for its name.
                if f"{image}.path" not in [one.path for one in table.schema]:
                    return None
                for batch in table.iter_batches(columns=[f"{image}.path"]):
                    paths = batch.column(0).field("path").to_pylist()
                    names += [Path(one or "").name for one in paths]
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({first_line(error)}).") from error
    return names
