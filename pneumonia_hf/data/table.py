"""Rows of one shape for all X-rays, wherever they come from, and what is not as it should be.

A row has `image` ({path, bytes}), `label`, `patient` and `file`, besides whatever else its source
knows of the image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pneumonia_hf.data.issues import DataIssue
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset, Features

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
ALL = "all"  # the part of a source that is not parted
OWN_COLUMNS = ("image", "label", "patient", "file", "source")
RESERVED = {*OWN_COLUMNS, "path", "bytes", ""}  # names that further columns cannot have


@dataclass(frozen=True, eq=False)
class XrayData(Mapping):
    """The splits of one or several sources, by name, and the data issues found in them.

    A split is a `datasets.Dataset`; its name is train, validation, test or `all`.
    """

    splits: dict[str, Dataset]
    issues: tuple[DataIssue, ...] = ()

    def __getitem__(self, name: str) -> Dataset:
        return self.splits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)


@dataclass
class Listing:
    """What a source holds: its parts, and all in it that is not as it should be."""

    splits: dict[str, Dataset]  # train, validation, test; or `all`
    issues: list[DataIssue] = field(default_factory=list)


class RowTable:
    """Rows as they are found, made columns every few thousand: many of them take little memory."""

    CHUNK = 5000

    def __init__(self) -> None:
        self.columns: dict[str, list] = {"path": [], "label": [], "patient": [], "file": []}
        self.extras: list[dict[str, str]] = []
        self.chunks: list[Any] = []
        self.count = 0
        self.strangers = 0  # images of patients that nothing names
        self.first_stranger = ""

    def add(
        self,
        path: str,
        file: str,
        label: int,
        patient: str | None,
        extra: dict[str, str] | None = None,
    ) -> None:
        """Add an image; one whose patient is not known gets a patient of its own."""
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
            listing.issues.append(
                DataIssue("own_patient", self.first_stranger, reason, count=self.strangers)
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
