"""List folders of X-rays: splits, classes and metadata.csv, with all data issues."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.data.issues import DataIssue, log_issues
from pneumonia_hf.data.patients import find_patient, is_patient
from pneumonia_hf.data.table import ALL, SPLIT_NAMES, RowTable, XrayData
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import expand
from pneumonia_hf.imaging.read import is_image_file
from pneumonia_hf.labels import LABELS, find_label, find_plain_label

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
KNOWN_COLUMNS = {"file_name", "label", "patient_id"}  # of metadata.csv, in any case
NORMAL = LABELS.index("NORMAL")
# Beside a folder of images: masks, as of the COVID-19 Radiography Database, or lung masks.
MASK_FOLDER = re.compile(r"(.*[\W_])?(masks?|segmentations?)", re.IGNORECASE)
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}


def list_one_vs_rest(where: str) -> XrayData:
    """List a folder as `list_folder` does, with the images of all other classes as NORMAL.

    That is for folders of images that are abnormal without pneumonia. The column `class` has the
    name of each image's own class.
    """
    return list_folder(where, one_vs_rest=True)


def list_folder(where: str, one_vs_rest: bool = False) -> XrayData:
    """List `train/ val/ test/` with class folders, class folders alone, or a flat folder.

    A flat folder holds images and a metadata.csv with their labels.

    Args:
        where: the folder.
        one_vs_rest: classes other than NORMAL and PNEUMONIA are NORMAL too.

    Raises:
        UserError: the folder is missing, has neither splits nor classes, or lacks a class.
    """
    root = Path(os.path.abspath(expand(where)))  # normalised, as the keys of metadata are
    if not root.exists():
        raise UserError(f"The data folder {where} does not exist; check --data_dir.")
    if not root.is_dir():
        raise UserError(f"{where} is a file; --data_dir takes a folder.")
    if not _is_utf8(root):
        raise UserError("The data folder's path is not valid UTF-8; rename it.")
    lister = _Lister(root, one_vs_rest)
    listing = lister.listing
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir()]
    splits = {f: SPLIT_NAMES[f.name.lower()] for f in folders if f.name.lower() in SPLIT_NAMES}
    classes = [folder for folder in folders if find_label(folder.name) is not None]
    has_metadata = lister.read_metadata(root)
    if classes and splits:
        raise UserError(
            f"{where} has split folders ({next(iter(splits)).name}) beside class folders "
            f"({classes[0].name}); move one or the other into a separate folder."
        )
    if classes or (not splits and any("label" in row for row in lister.rows.values())):
        listing[ALL] = lister.list_split(root, "", has_metadata)
    elif splits:
        for folder, name in splits.items():
            if name in listing:
                raise UserError(f"{root} has two {name} folders; keep one of them.")
            # A person number of the Kermany set identifies a patient only within a split.
            has_own = lister.read_metadata(folder) or has_metadata
            listing[name] = lister.list_split(folder, f"{name}/", has_own)
        for path in lister.walk(root, skip=set(splits)):
            lister.report_unused(path, in_split=False)
    else:
        inner = next((folder for folder in folders if _looks_like_data(folder)), None)
        hint = f"did you mean {inner}?" if inner else "put the images into such folders."
        raise UserError(
            f"{root} has neither train/ val/ test/ nor NORMAL/ and PNEUMONIA/ folders; {hint}"
        )
    lister.report_missing()
    if not splits and any("split" in map(str.lower, row) for row in lister.rows.values()):
        logger.warning(
            "The column split of metadata.csv is not used; folders train/, val/ and test/ are."
        )
    for name, split in listing.items():
        if not len(split) and listing.issues:
            first = listing.issues[0]
            raise UserError(
                f"{where} holds no X-ray labelled NORMAL or PNEUMONIA in its {name} split: "
                f"{first.file}, {first.reason}."
            )
    return listing


@dataclass(frozen=True)
class OtherImage:
    """An image of a class other than NORMAL and PNEUMONIA."""

    path: Path
    file: str  # relative to the data folder
    folder: str  # the name of its class
    cells: dict[str, str]  # its row of metadata.csv, by column


def list_others(where: str, names: Sequence[str]) -> list[OtherImage]:
    """Return the images in the class folders `names`, beside NORMAL and PNEUMONIA.

    Files there that are not used are logged.

    Raises:
        UserError: a folder is missing, without images, or one of the two classes.
    """
    root = Path(os.path.abspath(expand(where)))
    lister = _Lister(root)
    found = []
    for name in names:
        folder = root / name
        if find_label(name) is not None:
            raise UserError(f"{name} is one of the two classes; --other_classes takes others.")
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; check --other_classes.")
        lister.read_metadata(root)
        lister.read_metadata(folder)
        images = [path for path in lister.walk(folder) if lister.is_usable(path)]
        if not images:
            raise UserError(f"{folder} holds no images; check --other_classes.")
        found += [
            OtherImage(path, lister.relative(path), name, lister.rows.get(str(path), {}))
            for path in images
        ]
    log_issues(lister.listing.issues)
    return found


class _Lister:
    """List the images below `root`, and add the issues of all other files to `listing`."""

    def __init__(self, root: Path, one_vs_rest: bool = False) -> None:
        self.root = root
        self.one_vs_rest = one_vs_rest
        self.listing = XrayData()
        self.rows: dict[str, dict[str, str]] = {}  # of metadata.csv files, by absolute path
        self.tables: set[Path] = set()  # metadata.csv files that were read
        self.found: set[str] = set()  # paths in `rows` whose image was listed

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def label_of_folder(self, folder: Path) -> int | None:
        """Return the class number of a class folder, or None."""
        label = find_label(folder.name)
        is_rest = self.one_vs_rest and label is None and not _is_system_file(folder.name)
        return NORMAL if is_rest else label

    def parse_label(self, text: str | None) -> int | None:
        """Return the class number of a cell of metadata.csv, or None."""
        label = find_plain_label(text)
        return NORMAL if self.one_vs_rest and label is None and text is not None else label

    def read_metadata(self, folder: Path) -> bool:
        """Add the rows of a folder's metadata.csv to `rows`; return whether there is one.

        Raises:
            UserError: it cannot be read, or most of its rows match no file: patients that are
                known but not used would be in several splits.
        """
        table = folder / "metadata.csv"
        if not table.is_file():
            return False
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                names = [name.strip() for name in reader.fieldnames or []]
                names = [name.lower() if name.lower() in KNOWN_COLUMNS else name for name in names]
                if "file_name" not in names:
                    raise UserError(
                        f"{table} has no column file_name (it has {', '.join(names) or 'none'}); "
                        f"add it, or remove the file."
                    )
                reader.fieldnames = names
                lines = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{table} cannot be read as a CSV file in UTF-8: {error}.") from error
        rows: dict[str, dict[str, str]] = {}
        missing: list[str] = []
        for number, row in enumerate(lines, start=2):
            file = (row.pop("file_name") or "").strip()
            row.pop(None, None)  # cells beyond the header
            if not file:
                raise UserError(f"Line {number} of {table} names no file; fill in file_name.")
            path = os.path.normpath(folder / file)
            if not os.path.exists(path):  # perhaps written on Windows
                path = os.path.normpath(folder / file.replace("\\", "/"))
                missing += [] if os.path.exists(path) else [file]
            cells = {key: value.strip() for key, value in row.items() if value and value.strip()}
            if not is_patient(cells.get("patient_id", "")):
                cells.pop("patient_id", None)
            if rows.setdefault(path, cells) != cells:
                raise UserError(f"{table} names {file} twice with different values; keep one line.")
        if not lines:
            raise UserError(f"{table} has no rows; fill it in, or remove it.")
        if 2 * len(missing) > len(lines):
            raise UserError(
                f"{len(missing)} of the {len(lines)} rows of {table} match no file, the first "
                f"being {missing[0]!r}; give file_name relative to {folder}, or remove the table."
            )
        for path, cells in rows.items():
            known = self.rows.get(path, {})
            clash = next((key for key, cell in cells.items() if known.get(key, cell) != cell), None)
            if clash:
                raise UserError(
                    f"{table} says {clash} {cells[clash]!r} of {Path(path).name}, and another "
                    f"metadata.csv {known[clash]!r}; keep one of them."
                )
            self.rows[path] = known | cells
        self.tables.add(table)
        return True

    def list_split(self, folder: Path, prefix: str, has_metadata: bool) -> Dataset:
        """Return a split: the images in its class folders, or labelled by metadata."""
        table = RowTable()
        entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
        masks = _find_mask_folders([entry.name for entry in entries])
        label_of = {one: self.label_of_folder(one) for one in entries if one.name not in masks}
        class_folders = [entry for entry, label in label_of.items() if label is not None]

        def add(path: Path, label: int, name: str, must_be_listed: bool) -> None:
            row = dict(self.rows.get(str(path), {}))
            if str(path) in self.rows:
                self.found.add(str(path))
            elif must_be_listed:
                self._report("metadata_left_out", path, "no line names it")
            text = row.pop("label", None)
            if text is not None and self.parse_label(text) != label:
                reason = f"its folder says {LABELS[label]}, which is used; metadata.csv says {text}"
                self._report("metadata_other_label", path, reason)
            patient = row.pop("patient_id", None)
            patient = patient or find_patient(path.relative_to(folder).as_posix(), prefix)
            class_name = None
            if self.one_vs_rest:
                own = find_plain_label(name)
                class_name = name.upper() if own is None else LABELS[own]
            table.add(str(path), self.relative(path), label, patient, row, class_name)

        for class_folder in sorted(class_folders, key=label_of.__getitem__):
            must_be_listed = self.read_metadata(class_folder) or has_metadata
            for path in self.walk(class_folder):
                if self.is_usable(path):
                    add(path, label_of[class_folder], class_folder.name, must_be_listed)
        for path in self.walk(folder, skip=set(class_folders)):
            text = self.rows.get(str(path), {}).get("label")
            label = self.parse_label(text)
            if text is None:
                self.report_unused(path)
            elif self.is_usable(path):
                if label is None:
                    self._report("unknown_label", path, f"metadata.csv says {text!r}")
                else:
                    add(path, label, text, True)
        return table.finish(self.listing)

    def _report(self, kind: str, path: Path, reason: str) -> None:
        self.listing.issues.append(DataIssue(kind, self.relative(path), reason))

    def report_missing(self) -> None:
        """Add an issue for each row of metadata without a file."""
        for path in sorted(self.rows.keys() - self.found):
            if not os.path.exists(path):
                file = os.path.relpath(path, self.root)
                issue = DataIssue("metadata_missing_file", file, "there is no such file")
                self.listing.issues.append(issue)

    def is_usable(self, path: Path) -> bool:
        """Return whether a file is read as an X-ray; if not, add an issue."""
        if _is_utf8(path) and is_image_file(path):
            return True
        self.report_unused(path)
        return False

    def report_unused(self, path: Path, in_split: bool = True, is_mask: bool = False) -> None:
        """Add an issue that says why a file is not used."""
        if path in self.tables:
            return
        file = path.relative_to(self.root)
        folder = file.parent.as_posix()
        if not _is_utf8(file):
            shown = file.as_posix().encode("utf-8", "backslashreplace").decode()
            self.listing.issues.append(DataIssue("odd_name", shown, "rename it"))
        elif any(_is_system_file(name) for name in file.parts):
            self._report("system_file", path, "hidden or created by an operating system")
        elif path.is_symlink() and not path.exists():
            self._report("not_an_image", path, "a link to a file that does not exist")
        elif not is_image_file(path):
            self._report("not_an_image", path, f"its extension is {path.suffix or 'missing'}")
        elif is_mask:
            self._report("mask", path, "its folder lies beside one of images")
        elif folder == ".":
            self._report("no_place", path, "it is outside the folders")
        else:
            is_class = in_split and file.parent.name.lower() not in SPLIT_NAMES
            kind = "unknown_label" if is_class else "no_place"
            self._report(kind, path, f"its folder is {folder}")

    def walk(self, folder: Path, skip: set[Path] = frozenset()) -> Iterator[Path]:
        """Yield every file below `folder` in order, through links but without cycles.

        Folders of masks are left out, and their files reported.
        """

        def report(error: OSError) -> None:
            reason = error.strerror or "it cannot be listed"
            issue = DataIssue("closed_folder", str(error.filename), reason)
            self.listing.issues.append(issue)

        for here, folders, files in os.walk(folder, followlinks=True, onerror=report):
            masks = _find_mask_folders(folders)
            for name in sorted(masks):
                for path in self.walk(Path(here, name)):
                    self.report_unused(path, is_mask=True)
            target = os.path.realpath(here) + os.sep
            folders[:] = sorted(
                name
                for name in folders
                if name not in masks
                and Path(here, name) not in skip
                # A link to one of its own parents would never end.
                and not target.startswith(os.path.realpath(Path(here, name)) + os.sep)
            )
            for name in sorted(files):
                yield Path(here, name)


def _find_mask_folders(names: Iterable[str]) -> set[str]:
    """Return the folders of masks among those of one folder: none without a folder of images."""
    has_images = any(name.lower() in ("image", "images") for name in names)
    return {name for name in names if has_images and MASK_FOLDER.fullmatch(name)}


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def _is_utf8(path: Path) -> bool:
    """Return whether a path can be encoded, as tables and reports need it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _looks_like_data(folder: Path) -> bool:
    names = {entry.name.lower() for entry in folder.iterdir() if entry.is_dir()}
    return bool(names & (SPLIT_NAMES.keys() | {label.lower() for label in LABELS}))
