"""Batch scoring: files and folders -> a CSV table with one row a file, in order."""

from __future__ import annotations

import csv
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.imaging.read import is_image_file
from pneumonia_hf.inference.score_check import explain_score_misfit

if TYPE_CHECKING:
    from pneumonia_hf.inference.predictor import Prediction, Predictor

logger = logging.getLogger(__name__)

COLUMNS = ("file", "probability", "threshold", "decision", "warnings", "other_abnormal")


def find_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the files to score, in order: the files named, and the images in the folders named.

    Folders are searched recursively and sorted by name, and only images count there. A file that
    is named itself is always returned, even if it does not exist: it gets its row like any that
    cannot be read.

    Raises:
        UserError: there is nothing to score.
    """
    if addresses := [one for one in map(str, inputs) if one.startswith(("http://", "https://"))]:
        raise UserError(f"Addresses are not read; download {addresses[0]}, and give the file.")
    found = []
    for path in map(Path, inputs):
        found += sorted(filter(is_image_file, path.rglob("*"))) if path.is_dir() else [path]
    if not found:
        raise UserError(
            f"No images in {', '.join(map(str, inputs))}; "
            f"give JPEG, PNG, TIFF, BMP, WebP or DICOM files."
        )
    return found


def check_output_file(output: str, overwrite: bool) -> None:
    """Raise a UserError if no file can be written to `output` (`-`: standard output)."""
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
    """Write one row a file to `output` (`-`: standard output); return how many are unreadable.

    The table appears when it is complete; an interrupted run leaves its rows in
    `OUTPUT.unfinished`. Scores that fit no hospital of the model are logged.
    """
    failed, scored = 0, []
    with open_table(output) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for path, found in zip(paths, predictor.predict_files(paths), strict=True):
            failed += isinstance(found, XrayError)
            table.writerow([path, *list_cells(found)])
            probability = getattr(found, "probability", None)
            scored += [] if probability is None else [probability]
    if misfit := explain_score_misfit(predictor, scored):
        logger.warning(misfit)
    return failed


def list_cells(found: Prediction | XrayError | str) -> list[str]:
    """Return the cells beside a file's name: of its prediction, or why it cannot be read."""
    if isinstance(found, XrayError | str):
        return ["", "", "", str(found), ""]
    # All digits: rounded to eight decimals, the highest scores would tie.
    shown, other = (
        "" if one is None else repr(one) for one in (found.probability, found.other_abnormal)
    )
    return [shown, repr(found.threshold), found.decision, " ".join(found.warnings), other]


@contextmanager
def open_table(output: str) -> Iterator[TextIO]:
    """Open a text file that appears at `output` when it is complete; `-` is standard output."""
    if output == "-":
        yield sys.stdout
        return
    path = Path(output)
    unfinished = path.with_name(f"{path.name}.unfinished")
    # File names need not be valid text: their bytes are written unchanged.
    with unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield file
    os.replace(unfinished, path)
