"""Tables of X-rays with the same columns for every source.

A row has `image` ({path, bytes}), `label`, `patient` and `file`, and further columns of its
source.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
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
ALL = "all"  # the only split of a source without splits
OWN_COLUMNS = ("image", "label", "patient", "file", "source", "hospital")
NO_METADATA = {*OWN_COLUMNS, "boxes"} - {"source"}
CLASS = "class"  # of an image of a one_vs_rest source alone: NORMAL, PNEUMONIA or another
RESERVED = {*OWN_COLUMNS, CLASS, "path", "bytes", ""}  # further columns get another name


class XrayData(dict):
    """The splits of one or several sources by name (train, validation, test; or `all`)."""

    def __init__(
        self, splits: Mapping[str, Dataset] | None = None, issues: Iterable[DataIssue] = ()
    ) -> None:
        """Take the splits and the data issues that were found; a source adds its own later."""
        super().__init__(splits or {})
        self.issues = list(issues)


class RowTable:
    """Collect rows, and convert each chunk of them to Arrow to save memory."""

    CHUNK = 5000

    def __init__(self) -> None:
        self.columns: dict[str, list] = {"path": [], "label": [], "patient": [], "file": []}
        self.extras: list[dict[str, str]] = []
        self.chunks: list[Any] = []
        self.count = 0
        self.unnamed = 0  # images without a patient
        self.first_unnamed = ""

    def add(
        self,
        path: str,
        file: str,
        label: int,
        patient: str | None,
        extra: dict[str, str] | None = None,
        class_name: str | None = None,
    ) -> None:
        """Add an image; without `patient` it counts as a patient of its own.

        `extra` are its further columns, `class_name` is that of CLASS.
        """
        if patient is None:
            # Rows of a dataset may all have the same file name.
            patient = file if os.path.isabs(path) else f"{file}#{self.count}"
            self.first_unnamed = self.first_unnamed or file
            self.unnamed += 1
        for name, value in zip(self.columns, (path, label, patient, file), strict=True):
            self.columns[name].append(value)
        extra = dict(extra or {})
        if CLASS in extra:
            extra[f"{CLASS}_"] = extra.pop(CLASS)
        self.extras.append(extra | ({CLASS: class_name} if class_name else {}))
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
            while key in RESERVED - {CLASS} or key in arrays:
                key += "_"
            arrays[key] = pa.array([extra.get(name) for extra in self.extras], pa.string())
        self.chunks.append(pa.table(arrays))
        self.columns = {name: [] for name in self.columns}
        self.extras = []

    def finish(self, listing: XrayData) -> Dataset:
        """Return the rows as a Dataset, and add an issue to `listing` for unnamed patients."""
        import pyarrow as pa
        from datasets import ClassLabel, Features, Value
        from datasets import Image as ImageFeature

        if self.unnamed:
            reason = "neither its name nor its metadata gives the patient"
            issue = DataIssue("own_patient", self.first_unnamed, reason, count=self.unnamed)
            listing.issues.append(issue)
        self._flush()
        table = pa.concat_tables(self.chunks, promote_options="default").combine_chunks()
        self.chunks = []
        paths = table["path"].combine_chunks()
        image = pa.StructArray.from_arrays(
            [pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"]
        )
        table = table.set_column(0, "image", image)
        features = {name: Value("string") for name in table.column_names}
        features |= {"image": ImageFeature(decode=False), "label": ClassLabel(names=list(LABELS))}
        return to_dataset(table, Features(features))


def column(data: Dataset, name: str) -> Any:
    """Return a column of `data` as an Arrow array, without Python objects."""
    return data.select_columns(name).with_format("arrow")[:][name].combine_chunks()


def take(data: Dataset, rows: np.ndarray) -> Dataset:
    """Return a copy of some rows of `data`.

    `Dataset.select` would keep an index instead, which takes almost 1 KB for each row read.
    """
    import pyarrow as pa

    return to_dataset(data.with_format("arrow")[:].take(pa.array(rows, pa.int64())), data.features)


def to_dataset(table: pa.Table, features: Features) -> Dataset:
    """Return an Arrow table as a Dataset."""
    from datasets import Dataset, DatasetInfo

    # A fingerprint of the contents would copy them.
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=uuid4().hex)


def batches(data: Dataset, name: str) -> Iterator[list]:
    """Yield a column of `data` as lists of up to 1,000 rows."""
    for batch in data.select_columns(name).with_format("arrow").iter(1000):
        yield batch[name].to_pylist()
