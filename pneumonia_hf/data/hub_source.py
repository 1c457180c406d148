"""The source `hub:OWNER/NAME`: a dataset on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from pneumonia_hf.data.dataset_rows import (
    find_image_column,
    first_line,
    keep_encoded,
    list_file_names,
    list_rows,
    to_bytes,
)
from pneumonia_hf.data.issues import DataIssue
from pneumonia_hf.data.table import SPLIT_NAMES, XrayData
from pneumonia_hf.errors import UserError, XrayError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def list_hub(where: str) -> XrayData:
    """List a dataset on the Hub, `owner/name` with an optional `:configuration` and `@revision`.

    It needs an image column and a label column; `patient_id` or `patient` is optional.
    """
    listing = XrayData()
    splits = load_hub(where)
    known = any(split.lower() in SPLIT_NAMES for split in splits)
    for split, data in splits.items():
        if known and split.lower() not in SPLIT_NAMES:
            reason = "its split is not train, validation or test"
            listing.issues.append(DataIssue("no_place", split, reason, count=len(data)))
            continue
        names = list_file_names(data, where)
        list_rows(data, f"hub:{where}@@{split}", split, where, listing, names)
    return listing


def read_hub(where: str, numbers: Sequence[int]) -> Iterator[bytes | XrayError]:
    """Yield the bytes of the numbered images of a split, `owner/name@@split`."""
    where, _, split = where.rpartition("@@")
    data = load_hub(where)[split]
    image = find_image_column(data.features, where)
    images = keep_encoded(data.select_columns(image), image)
    for number in numbers:
        try:
            yield to_bytes(images[number][image])
        except Exception as error:  # Arrow's, on a damaged row
            yield XrayError(f"The image cannot be fetched ({first_line(error)}).")


@lru_cache(maxsize=4)
def load_hub(where: str, streaming: bool = False) -> dict[str, Dataset | IterableDataset]:
    """Return the splits of `owner/name`, with an optional `:configuration` and `@revision`.

    Raises:
        UserError: no such dataset or configuration, or an unreachable Hub.
    """
    from datasets import (
        get_dataset_config_names,
        get_dataset_default_config_name,
        load_dataset,
    )

    from pneumonia_hf.hub import explain_data_error

    name, _, revision = where.partition("@")
    name, _, config = name.partition(":")
    at = {"revision": revision or None}
    try:
        # Checked first: a dataset without configurations would be loaded under any name.
        known = get_dataset_config_names(name, **at)
        if (config or get_dataset_default_config_name(name, **at)) not in known:
            raise UserError(_explain_config(name, config, known))
        return load_dataset(name, config or None, streaming=streaming, **at)
    except UserError:
        raise
    except Exception as error:
        # datasets passes on many types of error from the Hub, the network and its readers.
        raise UserError(explain_data_error(error, name, revision)) from error


def _explain_config(name: str, config: str, known: Sequence[str]) -> str:
    fault = f"has no configuration {config!r}" if config else "has several configurations"
    if len(known) < 2:
        return f"{name} {fault}; leave it out."
    return f"{name} {fault}; give {' or '.join(f'hub:{name}:{one}' for one in known)}."
