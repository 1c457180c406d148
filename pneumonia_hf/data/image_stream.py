"""Stream the images of a dataset on the Hub, or of shards, whether they have labels or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pneumonia_hf.data.dataset_rows import find_image_column, iterate_rows, keep_encoded, to_bytes
from pneumonia_hf.data.hub_source import load_hub
from pneumonia_hf.data.shard_source import find_shards, stat_shards, stream_files
from pneumonia_hf.errors import XrayError
from pneumonia_hf.hub import find_dataset_commit

if TYPE_CHECKING:
    from datasets import IterableDataset

STREAMS = ("hub:", "shards:")  # how such a source begins


def identify_stream(source: str) -> str:
    """Return what changes when the images of a stream do: sizes and times of shards, or a commit.

    Of shards at an address whose server states neither, the addresses alone.

    Raises:
        UserError: as `stream_images`.
    """
    kind, _, where = source.partition(":")
    if kind == "shards":
        files = find_shards(where).values()
        return repr([(one, stat_shards("|".join(one))) for one in files])
    name, _, revision = where.partition("@")
    return f"{source} {find_dataset_commit(name.partition(':')[0], revision or None)}"


def stream_images(source: str) -> Iterator[tuple[str, bytes | XrayError]]:
    """Yield a name and the encoded bytes of each image, split after split, in order.

    The name is `SPLIT/FILE` where the dataset knows the file, else `SPLIT/NUMBER`. `source` is
    `hub:OWNER/NAME[:CONFIGURATION][@REVISION]`, or `shards:` with paths or addresses.

    Raises:
        UserError: no such dataset; no image column; the stream ended with an error.
    """
    kind, _, where = source.partition(":")
    splits: dict[str, IterableDataset]
    if kind == "hub":
        splits = load_hub(where, streaming=True)
    else:
        splits = {name: stream_files(tuple(files)) for name, files in find_shards(where).items()}
    for split, data in splits.items():
        column = find_image_column(data.features or {}, source)
        for number, row in enumerate(iterate_rows(keep_encoded(data, column), source)):
            image = row[column]
            known = isinstance(image, dict) and image["path"]
            yield f"{split}/{row.get('__key__') or known or number}", to_bytes(image)
