"""Where X-rays come from: folders, the Hub, PneumoniaMNIST, shards -> rows of one shape.

Every source becomes tables with the columns `image` ({path, bytes}), `label`, `patient` and
`file`, besides whatever else it knows of each picture. The pictures stay where they are: a row
holds the path of a file or, for a picture that is no file of its own, an address `KIND:WHERE#N`,
and `open_pictures` fetches them in order.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.xray import is_picture_file

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset, Features, IterableDataset

LABELS = ("NORMAL", "PNEUMONIA")  # a label's place is its class number
PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
# File names of the Kermany set: one patient has up to 30 pictures.
KERMANY_NAME = re.compile(r"^(person\d+)_(?:bacteria|virus)_\d+|^((?:NORMAL2-)?IM-\d+)-\d+")
ALL = "all"  # the part of a source that is not parted
OWN_COLUMNS = ("image", "label", "patient", "file", "source")
# What systems leave in folders; it is told of, but never a reason to stop.
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True)
class Trouble:
    """Something in the data that is not as it should be."""

    kind: str  # a key of TROUBLES
    file: str  # the picture, file or patient that it is about
    reason: str
    count: int = 1  # of files, where `file` is only the first of them


@dataclass(frozen=True)
class TroubleKind:
    """What one kind of trouble is called, and whether --strict makes an error of it."""

    title: str
    strict: bool = True


TROUBLES = {
    "unreadable": TroubleKind("cannot be read as X-rays, and are left out"),
    "not_a_picture": TroubleKind("are no pictures by their names, and are left out"),
    "odd_name": TroubleKind("have names that are no text (UTF-8), and are left out"),
    "unknown_label": TroubleKind("are neither NORMAL nor PNEUMONIA, and are left out"),
    "no_place": TroubleKind("lie where no part and no class is, and are left out"),
    "metadata_missing_file": TroubleKind("are named by metadata.csv, but are not there"),
    "metadata_left_out": TroubleKind("are left out of metadata.csv"),
    "metadata_other_label": TroubleKind("have another label in metadata.csv than by their folder"),
    "both_labels": TroubleKind("patients have pictures of both labels", strict=False),
    "own_patient": TroubleKind("do not tell their patient: each counts as one", strict=False),
    "system_file": TroubleKind("were left by a system, and are left out", strict=False),
}


@dataclass(frozen=True)
class Source:
    """One place that X-rays come from, as the user named it."""

    name: str
    kind: str  # a key of SOURCES
    where: str


@dataclass
class Listing:
    """What a source holds: its parts, and all in it that is not as it should be."""

    parts: dict[str, Dataset]  # train, validation, test; or `all`
    troubles: list[Trouble] = field(default_factory=list)


@dataclass(frozen=True)
class SourceKind:
    """How one kind of source is listed and its pictures are fetched."""

    list: Callable[[str], Listing]
    # The bytes of the numbered pictures of a part, given `WHERE` and ascending numbers.
    read: Callable[[str, Sequence[int]], Iterator[bytes]] | None = None
    # Size and times of the files that pictures are in, which change when those do.
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
        name = Path(last).expanduser().resolve().name if kind == "folder" else f"{kind}-{last}"
        name = re.sub(r"[^\w.-]+", "-", name).strip("-") or kind
    return Source(name, kind, where)


def list_source(source: Source) -> Listing:
    """Return the tables and troubles of a source.

    Raises:
        UserError: it is not there, or holds no X-rays of the two classes.
    """
    return SOURCES[source.kind].list(source.where)


def open_pictures(data: Dataset) -> Iterator[tuple[str, Path | bytes | XrayError]]:
    """Yield each row's name and its picture, not yet decoded, in the order of the rows.

    A picture is the path of its file, the bytes of one, or the error that kept it from being
    fetched.
    """
    names = (name for batch in _batches(data, "file") for name in batch)
    paths = list_addresses(data)
    rows = ((*_split_address(path), name) for path, name in zip(paths, names, strict=True))
    for (kind, where), group in groupby(rows, key=lambda row: row[:2]):
        if kind == "folder":
            for _, _, path, name in group:
                yield name, Path(path)
        else:
            group = list(group)
            read = SOURCES[kind].read(where, [int(number) for _, _, number, _ in group])
            for _, _, _, name in group:
                try:
                    yield name, next(read)
                except XrayError as error:
                    yield name, error


def list_addresses(data: Dataset) -> Iterator[str]:
    """Yield the path or address of each row."""
    return (one["path"] for batch in _batches(data, "image") for one in batch)


def stat_picture(address: str) -> tuple[str, int, int, int] | None:
    """Return an address with the size and times of its file; None where nothing tells them.

    Raises:
        OSError: the file is not there.
    """
    kind, where, _ = _split_address(address)
    if kind == "folder":
        stat = os.stat(address)
        return address, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    told = SOURCES[kind].stat(where) if SOURCES[kind].stat else None
    return told and (address, *told)


def column(data: Dataset, name: str) -> Any:
    """Return a column of `data` as an Arrow array, without a Python object for every row."""
    import pyarrow as pa

    chunks = data.select_columns(name).with_format("arrow")[:][name].chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def take(data: Dataset, rows: np.ndarray) -> Dataset:
    """Return some rows of `data` as a table of its own.

    What `select` of the datasets library returns looks up each row when it is read, at almost a
    kilobyte a row.
    """
    import pyarrow as pa

    return to_dataset(data.with_format("arrow")[:].take(pa.array(rows, pa.int64())), data.features)


def to_dataset(table: pa.Table, features: Features) -> Dataset:
    """Return an Arrow table as a Dataset."""
    from datasets import Dataset, DatasetInfo

    # A fingerprint made from the contents would copy all of them.
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=uuid4().hex)


def _batches(data: Dataset, name: str) -> Iterator[list]:
    for batch in data.select_columns(name).with_format("arrow").iter(1000):
        yield batch[name].to_pylist()


def _split_address(path: str) -> tuple[str, str, str]:
    kind, colon, rest = path.partition(":")
    if colon and kind in SOURCES and SOURCES[kind].read is not None:
        where, _, number = rest.rpartition("#")
        return kind, where, number
    return "folder", "", path


# ---------------------------------------------------------------------------------- tables


class _Table:
    """Rows as they are found, made columns every few thousand: many of them take little memory."""

    CHUNK = 5000

    def __init__(self) -> None:
        self.columns: dict[str, list] = {"path": [], "label": [], "patient": [], "file": []}
        self.extras: list[dict[str, str]] = []
        self.chunks: list[Any] = []
        self.count = 0
        self.strangers = 0  # pictures of patients that nothing names
        self.first_stranger = ""

    def add(
        self,
        path: str,
        file: str,
        label: int,
        patient: str | None,
        extra: dict[str, str] | None = None,
    ) -> None:
        """Add a picture; one whose patient is not known gets a patient of its own."""
        if patient is None:
            # Rows of a data set may all have the same name.
            patient = file if _split_address(path)[0] == "folder" else f"{file}#{self.count}"
            self.first_stranger = self.first_stranger or file
            self.strangers += 1
        for name, value in zip(self.columns, (path, label, patient, file), strict=True):
            self.columns[name].append(value)
        self.extras.append(extra or {})
        self.count += 1
        if len(self.extras) == self.CHUNK:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        arrays = {
            name: pa.array(values, pa.int64() if name == "label" else pa.string())
            for name, values in self.columns.items()
        }
        for name in sorted({name for extra in self.extras for name in extra}):
            key = f"{name}_" if name in OWN_COLUMNS else name
            arrays[key] = pa.array([extra.get(name) for extra in self.extras], pa.string())
        self.chunks.append(pa.table(arrays))
        self.columns = {name: [] for name in self.columns}
        self.extras = []

    def finish(self, listing: Listing) -> Dataset:
        """Return the rows as a table, and tell `listing` of patients without a name."""
        import pyarrow as pa
        from datasets import ClassLabel, Features, Value
        from datasets import Image as ImageFeature

        if self.strangers:
            reason = "neither a name nor metadata tells whose it is"
            listing.troubles.append(
                Trouble("own_patient", self.first_stranger, reason, count=self.strangers)
            )
        self._flush()
        table = pa.concat_tables(self.chunks, promote_options="default").combine_chunks()
        self.chunks = []
        paths = pa.concat_arrays(table["path"].chunks)
        image = pa.StructArray.from_arrays(
            [pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"]
        )
        table = table.set_column(0, "image", image)
        features = {name: Value("string") for name in table.column_names}
        features |= {"image": ImageFeature(decode=False), "label": ClassLabel(names=list(LABELS))}
        return to_dataset(table, Features(features))


def find_label(value: object, names: Sequence[str] | None = None) -> int | None:
    """Return the class number that a label means, or None for one outside the two classes.

    Args:
        value: a class's name in any case, or a number of `names`.
        names: the classes of a numbered label, in order; left out, ours.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        names = LABELS if names is None else names
        value = names[value] if 0 <= value < len(names) else ""
    value = str(value).strip().upper()
    return LABELS.index(value) if value in LABELS else None


def find_patient(file: str, prefix: str) -> str | None:
    """Return the patient that a file's name tells, as the Kermany set writes it, or None."""
    match = KERMANY_NAME.match(Path(file).name)
    if not match:
        return None
    # Other software names films so too, in a folder for each patient.
    inner = "/".join(Path(file).parts[1:-1])
    return f"{prefix}{inner}{'/' if inner else ''}{match[1] or match[2]}"


# ---------------------------------------------------------------------------------- folders


def list_folder(where: str) -> Listing:
    """List `train/ val/ test/` with class folders in them, class folders alone, or a flat folder.

    A flat folder holds pictures and a metadata.csv that gives their labels.

    Raises:
        UserError: the folder is missing, has neither parts nor classes, or lacks a class.
    """
    root = Path(os.path.abspath(Path(where).expanduser()))  # without `..`, as metadata is found by
    if not root.exists():
        raise UserError(f"The data folder {where} does not exist; check --data_dir.")
    if not root.is_dir():
        raise UserError(f"{where} is a file; --data_dir takes a folder.")
    if not _is_text(root):
        raise UserError("The data folder's path is no text (UTF-8); rename it.")
    listing = Listing({})
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir()]
    parts = {folder: PART_NAMES[folder.name.lower()] for folder in folders if _is_part(folder)}
    classes = [folder for folder in folders if find_label(folder.name) is not None]
    metadata = _read_metadata(root)
    if classes and parts:
        raise UserError(
            f"{where} has parts ({next(iter(parts)).name}) beside class folders "
            f"({classes[0].name}); move the one or the other into a folder of its own."
        )
    if classes or (not parts and any("label" in row for row in metadata.rows.values())):
        listing.parts[ALL] = _list_part(root, root, "", metadata, listing)
    elif parts:
        for folder, name in parts.items():
            if name in listing.parts:
                raise UserError(f"{root} has two {name} folders; keep one of them.")
            own = _read_metadata(folder)
            # A Kermany person number stands for a patient only within one part.
            listing.parts[name] = _list_part(
                root, folder, f"{name}/", _Metadata.join(metadata, own), listing
            )
            metadata.named |= own.named & metadata.rows.keys()
        for path in _walk(root, skip=set(parts)):
            _tell_apart(path, root, listing, in_part=False)
    else:
        inner = next((f for f in folders if _looks_like_data(f)), None)
        hint = f"did you mean {inner}?" if inner else "put the pictures into such folders."
        raise UserError(
            f"{root} has neither train/ val/ test/ nor NORMAL/ and PNEUMONIA/ folders; {hint}"
        )
    metadata.tell_missing(root, listing)
    return listing


class _Metadata:
    """The rows of metadata.csv files, by the absolute path of the picture that each is about."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = {}
        self.named: set[str] = set()  # those that were found
        self.there = False

    @classmethod
    def join(cls, *several: _Metadata) -> _Metadata:
        joined = cls()
        for one in several:
            joined.rows |= one.rows
            joined.there |= one.there
        joined.named = several[0].named
        return joined

    def tell_missing(self, root: Path, listing: Listing) -> None:
        for path in sorted(self.rows.keys() - self.named):
            if not os.path.exists(path):
                file = os.path.relpath(path, root)
                listing.troubles.append(
                    Trouble("metadata_missing_file", file, "there is no such file")
                )


def _read_metadata(folder: Path) -> _Metadata:
    """Read the metadata.csv of a folder, if it has one."""
    metadata = _Metadata()
    table = folder / "metadata.csv"
    if not table.is_file():
        return metadata
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            names = [name.strip() for name in reader.fieldnames or []]
            if "file_name" not in names:
                raise UserError(
                    f"{table} has no column file_name (it has {', '.join(names) or 'none'}); "
                    f"add it, or remove the file."
                )
            reader.fieldnames = names
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read as a CSV file in UTF-8: {error}.") from error
    metadata.there = True
    for number, row in enumerate(rows, start=2):
        file = (row.pop("file_name") or "").strip()
        row.pop(None, None)  # cells beyond the header
        if not file:
            raise UserError(f"Line {number} of {table} names no file; fill in file_name.")
        path = os.path.normpath(folder / file)
        if path in metadata.rows and metadata.rows[path] != row:
            raise UserError(f"{table} names {file} twice, and not alike; keep one of the lines.")
        metadata.rows[path] = {key: value.strip() for key, value in row.items() if value}
    return metadata


def _list_part(
    root: Path, folder: Path, prefix: str, metadata: _Metadata, listing: Listing
) -> Dataset:
    """Return one part: the pictures in its class folders, or those that its metadata labels."""
    table = _Table()
    class_folders = {
        entry: find_label(entry.name)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and find_label(entry.name) is not None
    }
    for label in range(len(LABELS)):
        for class_folder in (one for one, number in class_folders.items() if number == label):
            for path in _walk(class_folder):
                if _is_taken(path, root, listing):
                    _add_file(table, path, root, folder, prefix, label, metadata, listing)
    for path in _walk(folder, skip={*class_folders}):
        label = metadata.rows.get(str(path), {}).get("label")
        if label is None:
            _tell_apart(path, root, listing)
        elif not _is_taken(path, root, listing):
            continue  # which has told of it
        elif find_label(label) is None:
            file, reason = path.relative_to(root).as_posix(), f"metadata.csv says {label!r}"
            listing.troubles.append(Trouble("unknown_label", file, reason))
        else:
            _add_file(table, path, root, folder, prefix, find_label(label), metadata, listing)
    return table.finish(listing)


def _add_file(
    table: _Table,
    path: Path,
    root: Path,
    folder: Path,
    prefix: str,
    label: int,
    metadata: _Metadata,
    listing: Listing,
) -> None:
    file = path.relative_to(root).as_posix()
    row = metadata.rows.get(str(path))
    if row is None and metadata.there:
        listing.troubles.append(Trouble("metadata_left_out", file, "no line names it"))
    if row is not None:
        metadata.named.add(str(path))
    row = dict(row or {})
    told = row.pop("label", None)
    if told is not None and find_label(told) != label:
        reason = f"its folder says {LABELS[label]}, which is used; metadata.csv says {told}"
        listing.troubles.append(Trouble("metadata_other_label", file, reason))
    inside = path.relative_to(folder).as_posix()
    patient = row.pop("patient_id", None) or find_patient(inside, prefix)
    table.add(str(path), file, label, patient, row)


def _is_taken(path: Path, root: Path, listing: Listing) -> bool:
    if _is_text(path) and is_picture_file(path):
        return True
    _tell_apart(path, root, listing)
    return False


def _tell_apart(path: Path, root: Path, listing: Listing, in_part: bool = True) -> None:
    """Say of a file that is not used why it is not."""
    if path.name == "metadata.csv":
        return
    file = path.relative_to(root)
    folder = file.parent.as_posix()
    if not _is_text(file):
        shown = file.as_posix().encode("utf-8", "backslashreplace").decode()
        listing.troubles.append(Trouble("odd_name", shown, "rename it"))
        return
    if any(part.startswith(".") or part.lower() in SYSTEM_FILES for part in file.parts):
        kind, reason = "system_file", "hidden, or a system's own"
    elif not is_picture_file(path):
        kind, reason = "not_a_picture", f"its name ends in {path.suffix or 'nothing'}"
    elif folder == ".":
        kind, reason = "no_place", "it lies beside the folders"
    elif in_part and file.parent.name.lower() not in PART_NAMES:
        kind, reason = "unknown_label", f"its folder is {folder}"
    else:
        kind, reason = "no_place", f"its folder is {folder}"
    listing.troubles.append(Trouble(kind, file.as_posix(), reason))


def _is_text(path: Path) -> bool:
    """Return whether a name can be written as text, as tables and reports need it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(folder: Path, skip: set[Path] = frozenset()) -> Iterator[Path]:
    """Yield every file below `folder` in order, through links too, but never in circles."""
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(here)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if Path(here, name) not in skip)
        for name in sorted(files):
            yield Path(here, name)


def _is_part(folder: Path) -> bool:
    return folder.name.lower() in PART_NAMES


def _looks_like_data(folder: Path) -> bool:
    names = {entry.name.lower() for entry in folder.iterdir() if entry.is_dir()}
    return bool(names & (PART_NAMES.keys() | {label.lower() for label in LABELS}))


# ------------------------------------------------------------------- sets of the datasets library


def list_hub(where: str) -> Listing:
    """List a data set of the Hub, `owner/name` with an optional `@revision`.

    It needs a column with the picture and one with the class; `patient_id` or `patient`, if it
    has one, tells the patient.
    """
    listing = Listing({})
    for split, data in _load_hub(where).items():
        _list_features(data.features, where)
        _list_rows(data, f"hub:{where}@@{split}", split, where, listing)
    return listing


def read_hub(where: str, numbers: Sequence[int]) -> Iterator[bytes]:
    """Yield the bytes of the numbered pictures of a part of a Hub data set."""
    where, _, split = where.rpartition("@@")
    data = _load_hub(where)[split]
    image, _ = _list_features(data.features, where)
    pictures = _as_stored(data.select_columns(image), image)
    return _Fetcher(pictures[number][image] for number in numbers)


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
        data = _stream(tuple(files), labels_only=True)
        _list_rows(data, f"shards:{'|'.join(files)}", part, where, listing)
    return listing


def read_shards(where: str, numbers: Sequence[int]) -> Iterator[bytes]:
    """Yield the bytes of the numbered pictures of some shards, in one pass where they ascend."""
    return _Fetcher(_walk_stream(tuple(where.split("|")), numbers))


def _walk_stream(files: tuple[str, ...], numbers: Sequence[int]) -> Iterator[dict]:
    data = _stream(files)
    image, _ = _list_features(data.features, files[0])
    data = _as_stored(data.select_columns(image), image)
    at, rows = 0, iter(data)
    for number in numbers:
        if number < at:
            at, rows = 0, iter(data)
        while at < number:
            next(rows)
            at += 1
        at += 1
        yield next(rows)[image]


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


class _Fetcher:
    """An iterator over the bytes of pictures that goes on after one that cannot be fetched."""

    def __init__(self, pictures: Iterator[Any]) -> None:
        self.pictures = pictures

    def __iter__(self) -> _Fetcher:
        return self

    def __next__(self) -> bytes:
        try:
            picture = next(self.pictures)
        except StopIteration:
            raise XrayError("The data set ended before this picture; was it changed?") from None
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise XrayError(f"The picture cannot be fetched ({reason[0].rstrip('.')}).") from error
        if isinstance(picture, bytes):
            return picture
        if not picture or not (picture["bytes"] or picture["path"]):
            raise XrayError("The row holds no picture.")
        return picture["bytes"] or Path(picture["path"]).read_bytes()


def _find_shards(where: str) -> dict[str, list[str]]:
    """Return the files that `where` means, by part."""
    import fsspec

    files: list[str] = []
    for pattern in where.split(","):
        pattern = pattern.strip()
        if "://" not in pattern:
            pattern = str(Path(pattern).expanduser().absolute())
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
    from datasets import ClassLabel

    label = next((name for name, kind in features.items() if isinstance(kind, ClassLabel)), None)
    label = label or next((name for name in ("label", "labels", "cls") if name in features), None)
    if label is None and "label" in (features.get("json") or {}):
        label = "json"
    if label is None:
        raise UserError(f"{where} has no column `label` (it has {', '.join(features)}).")
    return label


def _as_stored(data: Any, image: str) -> Any:
    """Return `data` with its pictures undecoded."""
    from datasets import Image as ImageFeature

    if isinstance(data.features[image], ImageFeature):
        return data.cast_column(image, ImageFeature(decode=False))
    return data


def _list_rows(
    data: Dataset | IterableDataset, address: str, split: str, where: str, listing: Listing
) -> None:
    """Add a part to `listing`: all columns but the picture are read, row by row."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    part = PART_NAMES.get(split.lower(), ALL)
    prefix = "" if part == ALL else f"{part}/"
    label_name = _label_column(data.features, where)
    classes = getattr(data.features[label_name], "names", None)
    pictures = [n for n, kind in data.features.items() if isinstance(kind, ImageFeature)]
    names = _file_names(data, pictures[0]) if pictures and hasattr(data, "num_rows") else None
    if pictures:
        data = data.remove_columns(pictures)
    kind = isinstance(data.features[label_name], ClassLabel)
    table = _Table()
    for number, row in enumerate(data):
        row = {**row, **(row.pop("json", None) or {})} if "json" in row else row
        label = row.pop("label" if label_name == "json" else label_name, None)
        told = next((row.pop(n) for n in ("file_name", "__key__") if row.get(n)), None)
        told = str(told or (names[number] if names else None) or f"{number:06}")
        file = f"{prefix}{told}" if part != ALL else told
        found = find_label(label, classes) if kind else _find_plain_label(label)
        if found is None:
            named = classes[label] if kind and label is not None and label >= 0 else label
            listing.troubles.append(Trouble("unknown_label", file, f"its label is {named!r}"))
            continue
        patient = next((row.pop(n) for n in ("patient_id", "patient") if row.get(n)), None)
        patient = str(patient) if patient is not None else find_patient(Path(told).name, prefix)
        extra = {
            name: str(value)
            for name, value in row.items()
            if isinstance(value, str | int | float) and not name.startswith("__")
        }
        table.add(f"{address}#{number}", file, found, patient, extra)
    if part in listing.parts:
        raise UserError(f"{where} has two parts that are {part}; keep one of them.")
    listing.parts[part] = table.finish(listing)


def _find_plain_label(label: object) -> int | None:
    if isinstance(label, str) and label.strip().isdigit():
        label = int(label)
    return find_label(label)


def _file_names(data: Dataset, image: str) -> list[str]:
    """Return the file names that a table keeps beside its embedded pictures."""
    import pyarrow.compute as pc

    names = []
    for batch in data.select_columns(image).with_format("arrow").iter(1000):
        names += [Path(one or "").name for one in pc.struct_field(batch[image], "path").to_pylist()]
    return names


# ---------------------------------------------------------------------------------- medmnist


def list_medmnist(where: str) -> Listing:
    """List PneumoniaMNIST at 28, 64, 128 or 224 pixels: `medmnist:224`, or `medmnist:224@FOLDER`.

    It does not tell patients, and its pictures are those of the Kermany set, cropped.
    """
    listing = Listing({})
    for split in ("train", "val", "test"):
        part, table = PART_NAMES[split], _Table()
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
    root = Path(folder or "~/.medmnist").expanduser()
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


SOURCES: dict[str, SourceKind] = {
    "folder": SourceKind(list_folder),
    "hub": SourceKind(list_hub, read_hub),
    "medmnist": SourceKind(list_medmnist, read_medmnist),
    "shards": SourceKind(list_shards, read_shards, stat_shards),
}
