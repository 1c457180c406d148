"""The results of a batch as a table for people and as CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pneumonia_hf.demo.answers import DECISIONS, to_percent
from pneumonia_hf.demo.engine import ATTENTION
from pneumonia_hf.demo.images import thumbnail
from pneumonia_hf.inference.batch import COLUMNS, list_cells

if TYPE_CHECKING:
    from pneumonia_hf.demo.engine import BatchRow


def sort_rows(rows: Sequence[BatchRow]) -> list[BatchRow]:
    """Return the rows by need of attention, and within that by falling probability."""

    def key(row: BatchRow) -> tuple:
        found = row.prediction
        return (
            ATTENTION[found.decision if found else ""],
            -(found.probability if found and found.probability is not None else 0),
        )

    return sorted(rows, key=key)


def to_table(rows: Sequence[BatchRow], done: bool = True) -> str:
    """Return the rows as an HTML table with small images."""
    counts: dict[str, int] = {}
    for row in rows:
        name = row.prediction.decision if row.prediction else "not readable"
        counts[name] = counts.get(name, 0) + 1
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    state = "" if done else " so far"
    lines = "".join(map(_to_line, sort_rows(rows)))
    return (
        f'<p role="status">{len(rows)} images{state}: {summary}.</p><div class="wide">'
        '<table class="batch"><thead><tr><th scope="col">X-ray</th><th scope="col">File</th>'
        '<th scope="col">Probability</th><th scope="col">Decision</th>'
        f'<th scope="col">Reservations</th></tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _to_line(row: BatchRow) -> str:
    found = row.prediction
    image = f'<img src="{thumbnail(row.xray.image)}" alt="">' if row.xray is not None else ""
    probability = to_percent(found.probability) if found and found.probability is not None else ""
    decision = DECISIONS[found.decision] if found else "Not readable"
    notes = " ".join(found.warnings) if found else row.fault
    cells = (html.escape(row.file), probability, decision, html.escape(notes))
    return f"<tr><td>{image}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def to_csv(rows: Sequence[BatchRow]) -> str:
    """Return the rows as CSV with the columns of predict.py, by need of attention."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in sort_rows(rows):
        table.writerow([_without_formula(row.file), *list_cells(row.prediction or row.fault)])
    return buffer.getvalue()


def _without_formula(text: str) -> str:
    """Return a file name that a spreadsheet does not compute."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
