"""Sets that are no folders: of the Hub, Parquet and WebDataset shards, PneumoniaMNIST.

Their pictures stay where they are: a row holds an address `KIND:WHERE#N`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.rows import (
    ALL,
    LABELS,
    PART_NAMES,
    Listing,
    RowTable,
    Trouble,
    expand,
    find_label,
    find_patient,
    find_plain_label,
)

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

logger = logging.getLogger(__name__)


def list_hub(where: str) -> Listing:
    """List a data set of the Hub, `owner/name` with an optional `@revision`.

    It needs a column with the picture and one with the class; `patient_id` or `patient`, if it
    has one, tells the patient.
    """
    listing = Listing({})
    splits = _load_hub(where)
    known = any(split.lower() in PART_NAMES for split in splits)
    for split, data in splits.items():
        _list_features(data.features, where)
        if known and split.lower() not in PART_NAMES:
            reason = "its part is neither train, validation nor test"
            listing.troubles.append(Trouble("no_place", split, reason, count=len(data)))
            continue
        names = _file_names(data, where)
        _list_rows(data, f"hub:{where}@@{split}", split, where, listing, names)
    return listing


def read_hub(where: str, numbers: Sequence[int]) -> Iterator[bytes | XrayError]:
    """Yield the bytes of the numbered pictures of a part of a Hub data set."""
    where, _, split = where.rpartition("@@")
    data = _load_hub(where)[split]
    image, _ = _list_features(data.features, where)
    pictures = _as_stored(data.select_columns(image), image)
    for number in numbers:
        try:
            yield _to_bytes(pictures[number][image])
        except Exception as error:  # what Arrow raises on a damaged row
            yield XrayError(f"The picture cannot be fetched ({_first_line(error)}).")


@lru_cache(maxsize=4)
def _load_hub(where: str) -> dict[str, Dataset]:
    from datasets import load_dataset

    from pneumonia_hf.hub import explain_data_error

    name, _, revision = where.partition("@")
    try:
        return load_dataset(name, revision=revision or None)
    except Exception as error:
        # datasets wraps what the Hub, the network and its readers raise, each in its own way.
        raise UserError(explain_data_error(error, name, revision)) from error


def list_shards(where: str) -> Listing:
    """List Parquet (`.parquet`) or WebDataset (`.tar`) shards, local or remote, by streaming them.

    `where` is a path or a URL, with `*` for several and `,` between more. Nothing is downloaded
    to stay: labels are read now, and the pictures when they are asked for. Parts are told by the
    names of the files (`train-000.tar`, `test-000.tar`); files that name none are one part.
    """
    listing = Listing({})
    for part, files in _find_shards(where).items():
        data, names = _stream(tuple(files), labels_only=True), _stream_names(tuple(files))
        _list_rows(data, f"shards:{'|'.join(files)}", part, where, listing, names)
    return listing


def read_shards(where: str, numbers: Sequence[int]) -> Iterator[bytes | XrayError]:
    """Yield the bytes of the numbered pictures of some shards, in one pass where they ascend.

    Raises:
        UserError: the stream broke off, by a damaged shard or a fault of the network.
    """
    files = tuple(where.split("|"))
    data = _stream(files)
    image, _ = _list_features(data.features, files[0])
    data = _as_stored(data.select_columns(image), image)
    at, rows = 0, iter(data)
    for number in numbers:
        if number < at:
            at, rows = 0, iter(data)
        row = None
        while at <= number:
            try:
                row = next(rows, None)
            except Exception as error:  # of the network, of tar and of Parquet, each its own
                raise UserError(
                    f"{files[0]} broke off at picture {at} ({_first_line(error)}); mend it, or "
                    f"try again."
                ) from error
            at += 1
        if row is None:
            yield XrayError("The data set ended before this picture; was it changed?")
        else:
            yield _to_bytes(row[image])


def stat_shards(where: str) -> tuple[int, int, int] | None:
    """Return the size and times of all shards of a part; None for those that do not tell."""
    return _stat_files(tuple(where.split("|")), int(time.monotonic() // 60))


@lru_cache(maxsize=64)
def _stat_files(files: tuple[str, ...], _minute: int) -> tuple[int, int, int] | None:
    import fsspec

    size, times, marks = 0, [], []
    for file in files:
        if "://" not in file:
            stat = os.stat(file)
            size += stat.st_size
            times += [stat.st_mtime_ns, stat.st_ctime_ns]
            continue
        try:
            system, inner = fsspec.url_to_fs(file)
            told = system.info(inner)
        except Exception:
            return None  # every file system raises its own; reading will tell what is wrong
        mark = next(
            (
                told[key]
                for key in ("ETag", "etag", "LastModified", "mtime", "xet_hash", "blob_id")
                if told.get(key)
            ),
            None,
        )
        if mark is None or not told.get("size"):
            return None
        size += told["size"]
        marks.append(str(mark))
    # Anything that changes when one of the files does.
    digest = hashlib.sha256(repr((times, marks)).encode()).digest()
    return size, max(times, default=0), int.from_bytes(digest[:6], "big")


def _to_bytes(picture: Any) -> bytes | XrayError:
    """Return the bytes of a picture as the datasets library gives it."""
    if isinstance(picture, bytes):
        return picture
    if not picture or not (picture["bytes"] or picture["path"]):
        return XrayError("The row holds no picture.")
    if picture["bytes"]:
        return picture["bytes"]
    try:
        return Path(picture["path"]).read_bytes()
    except OSError as error:
        return XrayError(f"The row holds no picture, only a path ({error.strerror}).")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]


def _find_shards(where: str) -> dict[str, list[str]]:
    """Return the files that `where` means, by part."""
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
            except Exception as error:  # each file system raises its own
                raise UserError(f"{pattern} cannot be listed: {error}.") from error
        else:
            files.append(pattern)
    files = [one.removeprefix("file://") for one in files]
    kinds = {Path(one.partition("?")[0]).suffix.lower() for one in files}
    if len(kinds) != 1 or not kinds <= {".parquet", ".tar"}:
        if not files:
            raise UserError(f"There is no such file as {where}; check --data_dir.")
        found = ", ".join(one or "no ending" for one in sorted(kinds))
        raise UserError(
            f"{where} must mean Parquet (.parquet) or WebDataset (.tar) files of one kind, "
            f"but has {found}."
        )
    parts: dict[str, list[str]] = {}
    for one in files:
        words = re.split(r"[^a-z]+", one.rpartition("/")[2].lower())
        part = next((PART_NAMES[word] for word in words if word in PART_NAMES), ALL)
        parts.setdefault(part, []).append(one)
    if ALL in parts and len(parts) > 1:
        raise UserError(
            f"Some shards of {where} name their part and some do not ({parts[ALL][0]}); "
            f"rename them, or give them as sources of their own."
        )
    return parts


def _stream(files: tuple[str, ...], labels_only: bool = False) -> IterableDataset:
    from datasets import load_dataset

    from pneumonia_hf.hub import explain_data_error

    kind = "parquet" if ".parquet" in files[0] else "webdataset"
    try:
        data = load_dataset(kind, data_files={"x": list(files)}, streaming=True)["x"]
        if labels_only:
            image, _ = _list_features(data.features, files[0])
            if kind == "parquet":
                # Only these columns are read: no picture crosses the network for a label.
                names = [name for name in data.features if name != image]
                data = load_dataset(
                    kind, data_files={"x": list(files)}, columns=names, streaming=True
                )["x"]
            else:
                data = data.remove_columns(image)
        return data
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain_data_error(error, files[0], None)) from error


def _list_features(features: Features, where: str) -> tuple[str, str]:
    """Return the names of the columns with the picture and with the class."""
    from datasets import Image as ImageFeature

    names = [name for name, kind in features.items() if isinstance(kind, ImageFeature)]
    names += [name for name in ("dcm", "image") if name in features and name not in names]
    if not names:
        raise UserError(f"{where} has no column of pictures (it has {', '.join(features)}).")
    return names[0], _label_column(features, where)


def _label_column(features: Features, where: str) -> str:
    """Return the column with the class: by its name, else by the names of its classes."""
    from datasets import ClassLabel

    named = [name for name in ("label", "labels", "cls") if name in features]
    if "label" in (features.get("json") or {}):
        named.append("json")
    coded = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    told = [n for n in coded if {one.upper() for one in features[n].names} >= set(LABELS)]
    found = [*(name for name in named if name in told), *told, *named, *coded]
    if not found:
        raise UserError(f"{where} has no column `label` (it has {', '.join(features)}).")
    return found[0]


def _as_stored(data: Any, image: str) -> Any:
    """Return `data` with its pictures undecoded."""
    from datasets import Image as ImageFeature

    if isinstance(data.features[image], ImageFeature):
        return data.cast_column(image, ImageFeature(decode=False))
    return data


def _list_rows(
    data: Dataset | IterableDataset,
    address: str,
    split: str,
    where: str,
    listing: Listing,
    names: list[str] | None,
) -> None:
    """Add a part to `listing`: all columns but the picture are read, row by row."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    part = PART_NAMES.get(split.lower(), ALL)
    if part in listing.parts:
        raise UserError(f"{where} has two parts that are {part}; keep one of them.")
    prefix = "" if part == ALL else f"{part}/"
    label_name = _label_column(data.features, where)
    kind = data.features[label_name]
    if getattr(kind, "dtype", "").startswith("int") and not isinstance(kind, ClassLabel):
        logger.warning("%s has numbers for labels: 0 is taken for NORMAL, 1 for PNEUMONIA.", where)
    pictures = [name for name, one in data.features.items() if isinstance(one, ImageFeature)]
    data = data.remove_columns(pictures) if pictures else data
    table, rows, number = RowTable(), iter(data), -1
    while (row := _next_row(rows, where, number)) is not None:
        number += 1
        row = {**row, **(row.pop("json", None) or {})} if "json" in row else row
        label = row.pop("label" if label_name == "json" else label_name, None)
        told = _first(row, ("file_name", "__key__")) or (names[number] if names else "")
        told = told or f"{number:06}"
        file = f"{prefix}{told}"
        if isinstance(kind, ClassLabel):
            label = kind.names[label] if label is not None and label >= 0 else None
            found = find_label(label)
        else:
            found = find_plain_label(label)
        if found is None:
            listing.troubles.append(Trouble("unknown_label", file, f"its label is {label!r}"))
            continue
        patient = _first(row, ("patient_id", "patient")) or find_patient(Path(told).name, prefix)
        extra = {
            name: str(value)
            for name, value in row.items()
            if isinstance(value, str | int | float) and not name.startswith("__")
        }
        table.add(f"{address}#{number}", file, found, patient, extra)
    if not table.count:
        known = getattr(kind, "names", None)
        reason = f"its classes are {', '.join(known)}" if known else "no label is one of them"
        raise UserError(f"{where} has no picture labelled NORMAL or PNEUMONIA: {reason}.")
    listing.parts[part] = table.finish(listing)


def _next_row(rows: Iterator[dict], where: str, number: int) -> dict | None:
    try:
        return next(rows, None)
    except Exception as error:  # of the network, of tar and of Parquet, each its own
        raise UserError(
            f"{where} cannot be read beyond row {number + 1} ({_first_line(error)}); mend it, or "
            f"try again."
        ) from error


def _first(row: dict, names: Sequence[str]) -> str | None:
    """Return the first of some cells that holds anything, as text, and take them out."""
    for name in names:
        value = row.pop(name, None)
        if value is None or value == "" or value != value:  # NaN is none either
            continue
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return None


def _file_names(data: Dataset, where: str) -> list[str] | None:
    """Return the file names that a table keeps beside its embedded pictures."""
    import pyarrow as pa
    import pyarrow.compute as pc

    image, _ = _list_features(data.features, where)
    names: list[str] = []
    for batch in data.select_columns(image).with_format("arrow").iter(1000):
        if not pa.types.is_struct(batch[image].type):
            return None
        names += [Path(one or "").name for one in pc.struct_field(batch[image], "path").to_pylist()]
    return names


def _stream_names(files: tuple[str, ...]) -> list[str] | None:
    """Return the file names that Parquet shards keep beside their pictures, and nothing else."""
    import fsspec
    import pyarrow.parquet as pq

    if ".parquet" not in files[0]:
        return None
    names: list[str] = []
    image, _ = _list_features(_stream(files).features, files[0])
    for file in files:
        try:
            with fsspec.open(file, "rb").open() as opened, pq.ParquetFile(opened) as table:
                # One leaf of the struct: no picture crosses the network for its name.
                if f"{image}.path" not in [one.path for one in table.schema]:
                    return None
                for batch in table.iter_batches(columns=[f"{image}.path"]):
                    told = batch.column(0).field("path").to_pylist()
                    names += [Path(one or "").name for one in told]
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({_first_line(error)}).") from error
    return names


def list_medmnist(where: str) -> Listing:
    """List PneumoniaMNIST at 28, 64, 128 or 224 pixels: `medmnist:224`, or `medmnist:224@FOLDER`.

    It does not tell patients, and its pictures are those of the Kermany set, cropped.
    """
    listing = Listing({})
    for split in ("train", "val", "test"):
        part, table = PART_NAMES[split], RowTable()
        for number, label in enumerate(_load_medmnist(where, split)[1]):
            file = f"{part}/{number:05}.png"
            table.add(f"medmnist:{where}@@{split}#{number}", file, int(label), None)
        listing.parts[part] = table.finish(listing)
    return listing


def read_medmnist(where: str, numbers: Sequence[int]) -> Iterator[bytes]:
    """Yield the numbered pictures of a part of PneumoniaMNIST, as PNG files."""
    from PIL import Image

    where, _, split = where.rpartition("@@")
    pictures, _ = _load_medmnist(where, split)
    for number in numbers:
        buffer = io.BytesIO()
        Image.fromarray(pictures[number]).save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()


@lru_cache(maxsize=3)
def _load_medmnist(where: str, split: str) -> tuple[Any, Any]:
    """Return pictures [N, H, W] and labels [N] of one part."""
    from medmnist import PneumoniaMNIST

    size, _, folder = where.partition("@")
    if size not in {"28", "64", "128", "224"}:
        raise UserError(f"PneumoniaMNIST has no size {size!r}; choose from 28, 64, 128 and 224.")
    root = expand(folder or "~/.medmnist")
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = root / f"pneumoniamnist{'' if size == '28' else f'_{size}'}.npz"
        data = PneumoniaMNIST(
            split=split, download=not file.exists(), root=str(root), size=int(size)
        )
    except Exception as error:
        # medmnist raises RuntimeError for all that can go wrong with a download.
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"PneumoniaMNIST cannot be had ({reason}); download it from "
            f"https://medmnist.com into {root}."
        ) from error
    return data.imgs, data.labels.ravel()
