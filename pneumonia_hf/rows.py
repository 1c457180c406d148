"""Rows of one shape for all X-rays, wherever they come from, and what is not as it should be.

A row has `image` ({path, bytes}), `label`, `patient` and `file`, besides whatever else its source
knows of the picture.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pneumonia_hf.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset, Features

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
RESERVED = {*OWN_COLUMNS, "path", "bytes", ""}  # names that further columns cannot have


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
    "closed_folder": TroubleKind("are folders that cannot be opened, and are left out"),
    "unknown_label": TroubleKind("are neither NORMAL nor PNEUMONIA, and are left out"),
    "no_place": TroubleKind("lie where no part and no class is, and are left out"),
    "metadata_missing_file": TroubleKind("are named by metadata.csv, but are not there"),
    "metadata_left_out": TroubleKind("are left out of metadata.csv"),
    "metadata_other_label": TroubleKind("have another label in metadata.csv than by their folder"),
    "both_labels": TroubleKind("patients have pictures of both labels", strict=False),
    "own_patient": TroubleKind("do not tell their patient: each counts as one", strict=False),
    "system_file": TroubleKind("were left by a system, and are left out", strict=False),
}


@dataclass
class Listing:
    """What a source holds: its parts, and all in it that is not as it should be."""

    parts: dict[str, Dataset]  # train, validation, test; or `all`
    troubles: list[Trouble] = field(default_factory=list)


class RowTable:
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
            patient = file if os.path.isabs(path) else f"{file}#{self.count}"
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
            key = name
            while key in RESERVED or key in arrays:
                key += "_"
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


def find_plain_label(label: object) -> int | None:
    """Return the class number of a label that may be a number written as text."""
    if isinstance(label, str) and label.strip().isdigit():
        label = int(label)
    return find_label(label)


def expand(path: str) -> Path:
    """Return a path with `~` put in place.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} begins with a user that does not exist.") from error


def find_patient(file: str, prefix: str) -> str | None:
    """Return the patient that a file's name tells, as the Kermany set writes it, or None."""
    match = KERMANY_NAME.match(Path(file).name)
    if not match:
        return None
    # Other software names films so too, in a folder for each patient.
    inner = "/".join(Path(file).parts[1:-1])
    return f"{prefix}{inner}{'/' if inner else ''}{match[1] or match[2]}"


# The name of a patient that was made from such a file name: `train/person1008`, `a:IM-0115`.
KERMANY_PATIENT = re.compile(r"(^|[/:])(person\d+|(NORMAL2-)?IM-\d+)$")


def named_by_file(patients: Iterable[str]) -> bool:
    """Return whether these patients are groups by the Kermany set's file names.

    There are then at least as many patients: `personN_bacteria` and `personN_virus` are two
    series that are numbered apart, so one group may hold two. And a name carries the class, so
    that no group can have both labels.
    """
    return all(KERMANY_PATIENT.search(one) for one in patients)


def describe_patients(count: int, by_file: bool) -> str:
    """Return a number of patients in words that do not say more than is known."""
    return f"at least {count} patients (groups by file name)" if by_file else f"{count} patients"


def column(data: Dataset, name: str) -> Any:
    """Return a column of `data` as an Arrow array, without a Python object for every row."""
    import pyarrow as pa

    values = data.select_columns(name).with_format("arrow")[:][name]
    chunks = values.chunks
    if not chunks:
        return pa.array([], values.type)
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


def batches(data: Dataset, name: str) -> Iterator[list]:
    """Yield a column of `data` as lists of some rows."""
    for batch in data.select_columns(name).with_format("arrow").iter(1000):
        yield batch[name].to_pylist()
