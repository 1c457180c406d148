"""Convert rows of a `datasets` table to rows with the project's columns."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumonia_hf.data.issues import DataIssue
from pneumonia_hf.data.patients import find_patient, is_patient
from pneumonia_hf.data.table import ALL, SPLIT_NAMES, RowTable, XrayData
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.labels import LABELS, find_label, find_plain_label

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

logger = logging.getLogger(__name__)


def to_bytes(image: Any) -> bytes | XrayError:
    """Return the encoded bytes of an undecoded image of the datasets library."""
    if isinstance(image, bytes):
        return image
    if not image or not (image["bytes"] or image["path"]):
        return XrayError("The row holds no image.")
    if image["bytes"]:
        return image["bytes"]
    import fsspec

    try:
        with fsspec.open(image["path"], "rb") as file:  # also zip:// and hf://
            return file.read()
    except OSError as error:
        return XrayError(f"The row holds no image, only a path ({error.strerror}).")


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type, without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]


def find_image_column(features: Features, where: str) -> str:
    """Return the name of the image column."""
    from datasets import Image as ImageFeature

    names = [name for name, kind in features.items() if isinstance(kind, ImageFeature)]
    names += [name for name in ("dcm", "image") if name in features and name not in names]
    if not names:
        raise UserError(f"{where} has no image column (it has {', '.join(features)}).")
    return names[0]


def _label_column(features: Features, where: str) -> str:
    """Return the label column: one whose classes are ours, else by name, else any ClassLabel."""
    from datasets import ClassLabel

    named = [name for name in ("label", "labels", "cls") if name in features]
    if "label" in (features.get("json") or {}):
        named.append("json")
    coded = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    ours = [n for n in coded if {one.upper() for one in features[n].names} >= set(LABELS)]
    found = [*(name for name in named if name in ours), *ours, *named, *coded]
    if not found:
        raise UserError(f"{where} has no column `label` (it has {', '.join(features)}).")
    return found[0]


def keep_encoded(data: Any, image: str) -> Any:
    """Return `data` without decoding of its images."""
    from datasets import Image as ImageFeature

    if isinstance(data.features[image], ImageFeature):
        return data.cast_column(image, ImageFeature(decode=False))
    return data


def list_rows(
    data: Dataset | IterableDataset,
    address: str,
    name: str,
    where: str,
    listing: XrayData,
    names: list[str] | None,
) -> None:
    """Add the split `name` to `listing`, reading all columns except images row by row.

    Row N gets the address `address#N`, and the file name `names[N]` unless a column has one.
    """
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    split = SPLIT_NAMES.get(name.lower(), ALL)
    if split in listing:
        raise UserError(f"{where} has two {split} splits; keep one of them.")
    prefix = "" if split == ALL else f"{split}/"
    label_name = _label_column(data.features, where)
    kind = data.features[label_name]
    if getattr(kind, "dtype", "").startswith("int") and not isinstance(kind, ClassLabel):
        logger.warning("%s has numeric labels: 0 is read as NORMAL, 1 as PNEUMONIA.", where)
    images = [name for name, one in data.features.items() if isinstance(one, ImageFeature)]
    data = data.remove_columns(images) if images else data
    table = RowTable()
    for number, row in enumerate(iterate_rows(data, where)):
        row = {**row, **(row.pop("json", None) or {})} if "json" in row else row
        label = row.pop("label" if label_name == "json" else label_name, None)
        file_name = _pop_first(row, ("file_name", "__key__")) or (names[number] if names else "")
        file_name = file_name or f"{number:06}"
        file = f"{prefix}{file_name}"
        if isinstance(kind, ClassLabel):
            label = kind.names[label] if label is not None and label >= 0 else None
            found = find_label(label)
        else:
            found = find_plain_label(label)
        if found is None:
            listing.issues.append(DataIssue("unknown_label", file, f"its label is {label!r}"))
            continue
        patient = _pop_first(row, ("patient_id", "patient")) or ""
        if not is_patient(patient):
            patient = find_patient(Path(file_name).name, prefix)
        extra = {
            name: str(value)
            for name, value in row.items()
            if isinstance(value, str | int | float) and not name.startswith("__")
        }
        table.add(f"{address}#{number}", file, found, patient, extra)
    if not table.count:
        known = getattr(kind, "names", None)
        reason = f"its classes are {', '.join(known)}" if known else "no label is one of them"
        raise UserError(f"{where} has no image labelled NORMAL or PNEUMONIA: {reason}.")
    listing[split] = table.finish(listing)


def iterate_rows(data: Dataset | IterableDataset, where: str) -> Iterator[dict]:
    """Yield the rows of a table; an error in between becomes a UserError."""
    number = 0
    try:
        for number, row in enumerate(data, start=1):  # noqa: B007
            yield row
    except Exception as error:  # the network, tar and Parquet raise many types
        raise UserError(
            f"{where} cannot be read beyond row {number} ({first_line(error)}); repair it, or "
            f"try again."
        ) from error


def _pop_first(row: dict, names: Sequence[str]) -> str | None:
    """Remove cells up to the first one that is not empty, and return that as text."""
    for name in names:
        value = row.pop(name, None)
        if value is None or value == "" or value != value:  # NaN
            continue
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return None


def list_file_names(data: Dataset, where: str) -> list[str] | None:
    """Return the file names stored with embedded images, or None without any."""
    import pyarrow as pa
    import pyarrow.compute as pc

    image = find_image_column(data.features, where)
    names: list[str] = []
    for batch in data.select_columns(image).with_format("arrow").iter(1000):
        if not pa.types.is_struct(batch[image].type):
            return None
        names += [Path(one or "").name for one in pc.struct_field(batch[image], "path").to_pylist()]
    return names
