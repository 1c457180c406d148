"""Batch scoring: files and folders -> a CSV table with a row for each, in order."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.imaging.read import IMAGE_SUFFIXES, is_image_file

if TYPE_CHECKING:
    from pneumonia_hf.inference.predictor import Predictor

COLUMNS = ("file", "probability", "threshold", "decision", "warnings")


def find_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the files to score, in order: those named, and the images in folders named.

    A folder is searched through, sorted by name; only files that end like images count in it,
    while a file that is named itself always does.

    An input that does not exist is returned too: it gets its row like any that cannot be read.

    Raises:
        UserError: nothing to score at all.
    """
    found = []
    for one in map(Path, inputs):
        if one.is_dir():
            found += sorted(path for path in one.rglob("*") if is_image_file(path))
        else:
            found.append(one)
    if not found:
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"No images in {', '.join(map(str, inputs))} (endings: {endings}).")
    return found


def check_table(output: str, overwrite: bool) -> None:
    """Raise a UserError if the table cannot be written there, or would replace something."""
    if output == "-":
        return
    path = Path(output)
    if path.is_dir():
        raise UserError(f"{path} is a folder; --output takes a file, or - to print.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"The folder {path.parent} does not exist; make it, or change --output.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another --output, or give --overwrite.")


def write_predictions(predictor: Predictor, paths: Sequence[Path], output: str) -> int:
    """Write one row a file and return how many files could not be read.

    Args:
        predictor: the model.
        paths: what to score.
        output: the table's path, or `-` for standard output. It appears when it is whole; what
            stops the work leaves the rows so far in `OUTPUT.unfinished`.
    """
    failed = 0
    with _open_table(output) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for path, one in zip(paths, predictor.predict_files(paths), strict=True):
            if isinstance(one, XrayError):
                failed += 1
                table.writerow([path, "", "", "", str(one)])
                continue
            # In full: eight decimals would make one number of all high scores.
            numbers = (repr(one.probability), repr(one.threshold))
            table.writerow([path, *numbers, one.decision, " ".join(one.warnings)])
    return failed


@contextmanager
def _open_table(output: str) -> Iterator[TextIO]:
    if output == "-":
        yield sys.stdout
        return
    path = Path(output)
    unfinished = path.with_name(f"{path.name}.unfinished")
    # File names need not be text: their bytes go through as they are.
    with unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield file
    os.replace(unfinished, path)
