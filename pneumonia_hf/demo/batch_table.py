"""The results of a batch for the page's table, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pneumonia_hf.demo.answers import DECISIONS, list_warnings, make_scale, to_percent
from pneumonia_hf.demo.engine import ATTENTION
from pneumonia_hf.demo.images import THUMBNAIL_SIDE, to_data_uri
from pneumonia_hf.inference.batch import COLUMNS, list_cells

if TYPE_CHECKING:
    from pneumonia_hf.demo.engine import BatchRow, Engine


def describe_row(row: BatchRow, engine: Engine) -> dict[str, Any]:
    """Return what batch.js shows of a row; it writes texts as they are."""
    found, share = row.prediction, None
    if found and found.probability is not None:
        share = make_scale(engine, found.probability).probability
    decision = found.decision if found else ""
    return {
        "file": row.file,
        "decision": decision,
        "words": DECISIONS[decision],
        "probability": share,
        "percent": "" if share is None else to_percent(share),
        "warnings": " ".join(list_warnings(engine, found)) if found else row.fault,
        "image": to_data_uri(row.xray.image, THUMBNAIL_SIDE) if row.xray else None,
    }


def to_csv(rows: Sequence[BatchRow]) -> str:
    """Return the rows as CSV with the columns of predict.py, by need of attention."""

    def key(row: BatchRow) -> tuple:
        found = row.prediction
        probability = found.probability if found and found.probability is not None else 0
        return ATTENTION[found.decision if found else ""], -probability

    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in sorted(rows, key=key):
        table.writerow([_without_formula(row.file), *list_cells(row.prediction or row.fault)])
    return buffer.getvalue()


def _without_formula(text: str) -> str:
    """Return a file name that a spreadsheet does not compute."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
