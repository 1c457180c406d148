"""Folders of X-rays: their parts, classes and metadata.csv, and all that is odd in them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.data.issues import DataIssue
from pneumonia_hf.data.patients import find_patient
from pneumonia_hf.data.table import ALL, SPLIT_NAMES, Listing, RowTable
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import expand
from pneumonia_hf.imaging.read import is_image_file
from pneumonia_hf.labels import LABELS, find_label, find_plain_label

if TYPE_CHECKING:
    from datasets import Dataset

KNOWN_COLUMNS = {"file_name", "label", "patient_id"}  # of metadata.csv, in any case
# What systems leave in folders; it is told of, but never a reason to stop.
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}


def list_folder(where: str) -> Listing:
    """List `train/ val/ test/` with class folders in them, class folders alone, or a flat folder.

    A flat folder holds images and a metadata.csv that gives their labels.

    Raises:
        UserError: the folder is missing, has neither parts nor classes, or lacks a class.
    """
    root = Path(os.path.abspath(expand(where)))  # without `..`, as metadata is found by
    if not root.exists():
        raise UserError(f"The data folder {where} does not exist; check --data_dir.")
    if not root.is_dir():
        raise UserError(f"{where} is a file; --data_dir takes a folder.")
    if not _is_text(root):
        raise UserError("The data folder's path is no text (UTF-8); rename it.")
    listing = Listing({})
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir()]
    splits = {folder: SPLIT_NAMES[folder.name.lower()] for folder in folders if _is_split(folder)}
    classes = [folder for folder in folders if find_label(folder.name) is not None]
    metadata = _read_metadata(root)
    if classes and splits:
        raise UserError(
            f"{where} has parts ({next(iter(splits)).name}) beside class folders "
            f"({classes[0].name}); move the one or the other into a folder of its own."
        )
    if classes or (not splits and any("label" in row for row in metadata.rows.values())):
        listing.splits[ALL] = _list_split(root, root, "", metadata, listing)
    elif splits:
        for folder, name in splits.items():
            if name in listing.splits:
                raise UserError(f"{root} has two {name} folders; keep one of them.")
            own = _read_metadata(folder)
            # A Kermany person number stands for a patient only within one part.
            listing.splits[name] = _list_split(
                root, folder, f"{name}/", _Metadata.join(metadata, own), listing
            )
            own.named = metadata.named
            own.tell_missing(root, listing)
        for path in _walk(root, listing, skip=set(splits)):
            _tell_apart(path, root, listing, in_split=False)
    else:
        inner = next((f for f in folders if _looks_like_data(f)), None)
        hint = f"did you mean {inner}?" if inner else "put the images into such folders."
        raise UserError(
            f"{root} has neither train/ val/ test/ nor NORMAL/ and PNEUMONIA/ folders; {hint}"
        )
    metadata.tell_missing(root, listing)
    for name, split in listing.splits.items():
        if not len(split) and listing.issues:
            first = listing.issues[0]
            raise UserError(
                f"{where} holds no X-ray labelled NORMAL or PNEUMONIA in its {name} part: "
                f"{first.file}, {first.reason}."
            )
    return listing


@dataclass(frozen=True)
class OtherImage:
    """An image of a class that is neither NORMAL nor PNEUMONIA."""

    path: Path
    file: str  # relative to the data folder
    folder: str  # the name of its class
    cells: dict[str, str]  # what metadata.csv says of it, by column


def list_others(where: str, names: Sequence[str]) -> list[OtherImage]:
    """Return the images in folders of other classes beside NORMAL and PNEUMONIA.

    Args:
        where: the data folder.
        names: of the folders.

    Raises:
        UserError: no such folder, one of the two classes, or a folder without images.
    """
    root = Path(os.path.abspath(expand(where)))
    listing = Listing({})
    found = []
    for name in names:
        folder = root / name
        if find_label(name) is not None:
            raise UserError(f"{name} is one of the two classes; --other_classes takes others.")
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; check --other_classes.")
        metadata = _Metadata.join(_read_metadata(root), _read_metadata(folder))
        images = [path for path in _walk(folder, listing) if _is_taken(path, root, listing)]
        if not images:
            raise UserError(f"{folder} holds no images; check --other_classes.")
        found += [
            OtherImage(
                path, path.relative_to(root).as_posix(), name, metadata.rows.get(str(path), {})
            )
            for path in images
        ]
    return found


class _Metadata:
    """The rows of metadata.csv files, by the absolute path of the image that each is about."""

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
                listing.issues.append(
                    DataIssue("metadata_missing_file", file, "there is no such file")
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
            names = [name.lower() if name.lower() in KNOWN_COLUMNS else name for name in names]
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
        cells = {key: value.strip() for key, value in row.items() if value and value.strip()}
        if metadata.rows.get(path, cells) != cells:
            raise UserError(f"{table} names {file} twice, and not alike; keep one of the lines.")
        metadata.rows[path] = cells
    return metadata


def _list_split(
    root: Path, folder: Path, prefix: str, metadata: _Metadata, listing: Listing
) -> Dataset:
    """Return one part: the images in its class folders, or those that its metadata labels."""
    table = RowTable()
    class_folders = {
        entry: find_label(entry.name)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and find_label(entry.name) is not None
    }
    for label in range(len(LABELS)):
        for class_folder in (one for one, number in class_folders.items() if number == label):
            inner = _read_metadata(class_folder)
            inner.tell_missing(root, listing)
            summary = _Metadata.join(metadata, inner) if inner.there else metadata
            for path in _walk(class_folder, listing):
                if _is_taken(path, root, listing):
                    _add_file(table, path, root, folder, prefix, label, summary, listing)
    for path in _walk(folder, listing, skip={*class_folders}):
        label = metadata.rows.get(str(path), {}).get("label")
        if label is None:
            _tell_apart(path, root, listing)
        elif not _is_taken(path, root, listing):
            continue  # which has told of it
        elif find_plain_label(label) is None:
            file, reason = path.relative_to(root).as_posix(), f"metadata.csv says {label!r}"
            listing.issues.append(DataIssue("unknown_label", file, reason))
        else:
            label = find_plain_label(label)
            _add_file(table, path, root, folder, prefix, label, metadata, listing)
    return table.finish(listing)


def _add_file(
    table: RowTable,
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
        listing.issues.append(DataIssue("metadata_left_out", file, "no line names it"))
    if row is not None:
        metadata.named.add(str(path))
    row = dict(row or {})
    summary = row.pop("label", None)
    if summary is not None and find_plain_label(summary) != label:
        reason = f"its folder says {LABELS[label]}, which is used; metadata.csv says {summary}"
        listing.issues.append(DataIssue("metadata_other_label", file, reason))
    inside = path.relative_to(folder).as_posix()
    patient = row.pop("patient_id", None) or find_patient(inside, prefix)
    table.add(str(path), file, label, patient, row)


def _is_taken(path: Path, root: Path, listing: Listing) -> bool:
    if _is_text(path) and is_image_file(path):
        return True
    _tell_apart(path, root, listing)
    return False


def _tell_apart(path: Path, root: Path, listing: Listing, in_split: bool = True) -> None:
    """Say of a file that is not used why it is not."""
    if path.name == "metadata.csv":
        return
    file = path.relative_to(root)
    folder = file.parent.as_posix()
    if not _is_text(file):
        shown = file.as_posix().encode("utf-8", "backslashreplace").decode()
        listing.issues.append(DataIssue("odd_name", shown, "rename it"))
        return
    if any(name.startswith(".") or name.lower() in SYSTEM_FILES for name in file.parts):
        kind, reason = "system_file", "hidden, or a system's own"
    elif not is_image_file(path):
        kind, reason = "not_an_image", f"its name ends in {path.suffix or 'nothing'}"
    elif folder == ".":
        kind, reason = "no_place", "it lies beside the folders"
    elif in_split and file.parent.name.lower() not in SPLIT_NAMES:
        kind, reason = "unknown_label", f"its folder is {folder}"
    else:
        kind, reason = "no_place", f"its folder is {folder}"
    listing.issues.append(DataIssue(kind, file.as_posix(), reason))


def _is_text(path: Path) -> bool:
    """Return whether a name can be written as text, as tables and reports need it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(folder: Path, listing: Listing, skip: set[Path] = frozenset()) -> Iterator[Path]:
    """Yield every file below `folder` in order, through links too, but never in circles."""

    def tell(error: OSError) -> None:
        reason = error.strerror or "it cannot be listed"
        listing.issues.append(DataIssue("closed_folder", str(error.filename), reason))

    for here, folders, files in os.walk(folder, followlinks=True, onerror=tell):
        place = os.path.realpath(here) + os.sep
        folders[:] = sorted(
            name
            for name in folders
            if Path(here, name) not in skip
            # A link to where it lies itself would never end.
            and not place.startswith(os.path.realpath(Path(here, name)) + os.sep)
        )
        for name in sorted(files):
            yield Path(here, name)


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in SPLIT_NAMES


def _looks_like_data(folder: Path) -> bool:
    names = {entry.name.lower() for entry in folder.iterdir() if entry.is_dir()}
    return bool(names & (SPLIT_NAMES.keys() | {label.lower() for label in LABELS}))
