"""Score images in parts: Parquet files in one folder, which several processes fill together.

A part has the next PART images of the input, and is made by one process: its file appears when it
is complete. So a run that was killed goes on with the parts that are missing, also with another
number of processes.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.files import read_json, write_json
from pneumonia_hf.inference.batch import COLUMNS, open_table
from pneumonia_hf.inference.read_ahead import CHUNK, UndecodedImage, cut

if TYPE_CHECKING:
    import pyarrow

    from pneumonia_hf.inference.predictor import Prediction, Predictor

PART = CHUNK  # images: the batches of one process, and few images are shared evenly
INPUT_FILE = "input.json"  # what the parts are of


def prepare_parts(folder: Path, identity: Sequence[str]) -> None:
    """Make the folder, or check that the parts in it are of the same model and images.

    Raises:
        UserError: they are not; the folder cannot be made.
    """
    parts = repr([PART, *identity])
    digest = hashlib.sha256(parts.encode(errors="surrogateescape")).hexdigest()
    known = read_json(folder / INPUT_FILE, otherwise=None)
    if known not in (None, {"sha256": digest}):
        raise UserError(
            f"{folder} has results of other images, another model or another version; remove it, "
            f"or change --output."
        )
    folder.mkdir(exist_ok=True)
    write_json(folder / INPUT_FILE, {"sha256": digest})


def score_parts(
    predictor: Predictor,
    images: Iterable[UndecodedImage],
    folder: Path,
    process: int = 0,
    processes: int = 1,
) -> int:
    """Write the parts of this process that are missing; return the number of all images.

    Args:
        predictor: the model.
        images: the whole input, the same in all processes; only own images are decoded.
        folder: as `prepare_parts` makes it.
        process, processes: of the launcher; each makes every `processes`-th part.
    """
    from pyarrow import parquet

    count = 0
    begun: deque[tuple[Path, list[UndecodedImage]]] = deque()

    def take_own() -> Iterator[UndecodedImage]:
        nonlocal count
        for number, some in enumerate(cut(images, PART)):
            count += len(some)
            path = folder / f"part-{number:06d}.parquet"
            if number % processes == process and not path.exists():
                begun.append((path, some))
                yield from some

    # One stream over all own parts: the next is read while one is scored.
    for found in cut(predictor.predict_images(take_own()), PART):
        path, some = begun.popleft()
        rows = [to_row(str(name or source), one)
                for (name, source), one in zip(some, found, strict=True)]  # fmt: skip
        unfinished = path.with_suffix(".unfinished")
        parquet.write_table(to_arrow(rows), unfinished)
        os.replace(unfinished, path)
    return count


def to_row(name: str, found: Prediction | XrayError) -> dict[str, Any]:
    """Return COLUMNS of a prediction, or of the error of an image that cannot be read."""
    # A name that is no valid text is kept readable: Parquet holds valid text alone.
    row = {"file": name.encode(errors="surrogateescape").decode(errors="backslashreplace")}
    if isinstance(found, XrayError):
        return row | {"warnings": str(found)}
    values = {column: getattr(found, column) for column in COLUMNS[1:]}
    return row | values | {"warnings": " ".join(found.warnings)}


def to_arrow(rows: Sequence[dict[str, Any]]) -> pyarrow.Table:
    """Return rows as an Arrow table of COLUMNS."""
    import pyarrow

    kinds = {"file": pyarrow.string(), "decision": pyarrow.string(), "warnings": pyarrow.string()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in COLUMNS])
    return pyarrow.Table.from_pylist(list(rows), schema)


def merge_parts(folder: Path, output: Path, count: int) -> tuple[Counter, list[float]]:
    """Write all parts as one table, CSV or `.parquet`, and remove the folder.

    Returns:
        The number of images by decision, None for those that cannot be read; and the probabilities.

    Raises:
        UserError: there are more or fewer than `count` images.
    """
    from pyarrow import parquet

    paths = sorted(folder.glob("part-*.parquet"))
    known = sum(parquet.read_metadata(path).num_rows for path in paths)
    if known != count:
        raise UserError(
            f"{folder} has results of {known} of {count} images; put --output on a disk that all "
            f"machines share, and start again."
        )
    decisions: Counter = Counter()
    probabilities: list[float] = []

    def read() -> Iterator[pyarrow.Table]:
        for path in paths:
            yield (table := parquet.read_table(path))
            decisions.update(table["decision"].to_pylist())
            probabilities.extend(table["probability"].drop_null().to_pylist())

    if output.suffix == ".parquet":
        unfinished = output.with_name(f"{output.name}.unfinished")
        with parquet.ParquetWriter(unfinished, to_arrow([]).schema) as writer:
            for table in read():
                writer.write_table(table)
        os.replace(unfinished, output)
    else:
        with open_table(str(output)) as file:
            table_of = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table_of.writeheader()
            for table in read():
                table_of.writerows(table.to_pylist())
    shutil.rmtree(folder)
    return decisions, probabilities
