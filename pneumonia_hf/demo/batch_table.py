"""The results of a batch as a table for people and as CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pneumonia_hf.demo.answers import DECISIONS, list_warnings, make_scale, to_percent
from pneumonia_hf.demo.engine import ATTENTION, count
from pneumonia_hf.demo.images import thumbnail
from pneumonia_hf.inference.batch import COLUMNS, list_cells

if TYPE_CHECKING:
    from pneumonia_hf.demo.engine import BatchRow, Engine

# The decisions in a word, for chips.
NAMES = {
    "PNEUMONIA": "pneumonia",
    "REFER": "unsure",
    "REFUSED": "refused",
    "": "not readable",
    "NORMAL": "normal",
}
HEADINGS = ("File", "Probability", "Decision", "Warnings")
MOST_SKIPPED = 50  # that are listed


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    file: str
    decision: str  # "" if it could not be read
    probability: float  # of the page's prevalence, for sorting; -1 without one
    content: str  # the row in HTML


def to_line(row: BatchRow, number: int, engine: Engine) -> Line:
    """Return the row of one file, the one of that number in the batch."""
    found, share = row.prediction, -1.0
    decision = found.decision if found else ""
    if found and found.probability is not None:
        share = make_scale(engine, found.probability).probability
    image = f'<img src="{thumbnail(row.xray.image)}" alt="">' if row.xray is not None else ""
    notes = " ".join(list_warnings(engine, found)) if found else row.fault
    file = html.escape(row.file)
    name = f'<button type="button" class="open">{file}</button>' if found else file
    word = f'<span class="badge {decision.lower()}">{DECISIONS[decision]}</span>'
    cells = (
        ("", image),
        (file.lower(), name),
        (f"{share:.8f}", to_percent(share) if share >= 0 else ""),
        (str(ATTENTION[decision]), word),
        (str(bool(notes)), html.escape(notes)),
    )
    content = "".join(f'<td data-value="{value}">{text}</td>' for value, text in cells)
    place = f'data-index="{number}" data-decision="{decision}"'
    return Line(row.file, decision, share, f"<tr {place}>{content}</tr>")


def to_table(
    lines: Sequence[Line], total: int, skipped: Sequence[tuple[str, str]] = (), done: bool = True
) -> str:
    """Return the rows by need of attention, with chips that filter them and what was skipped.

    `total` is how many files there are; without `done` the batch is still being analysed.
    """
    of_all = f"{len(lines)} of {count(total, 'X-ray')}"
    state = f"Analysing: {of_all} done." if not done else (
        f"{count(total, 'X-ray')} analysed." if len(lines) == total
        else f"Stopped: {of_all} analysed."
    )  # fmt: skip
    bar = (
        ""
        if done
        else f'<progress max="{total}" value="{len(lines)}" aria-label="done"></progress>'
    )
    counts = {name: sum(line.decision == name for line in lines) for name in ATTENTION}
    chips = "".join(
        f'<button type="button" data-chip="{name or "none"}" aria-pressed="false">{number} '
        f"{NAMES[name]}</button>"
        for name, number in counts.items()
        if number
    )
    headings = "".join(
        f'<th scope="col"><button type="button" data-column="{place}">{name}</button></th>'
        for place, name in enumerate(HEADINGS, 1)
    )
    rows = sorted(lines, key=lambda line: (ATTENTION[line.decision], -line.probability))
    return (
        f'<p role="status">{state}</p>{bar}'
        f'<div class="chips" role="group" aria-label="Show only">'
        f'<button type="button" data-chip="" aria-pressed="true">all {len(lines)}</button>{chips}'
        f'</div>{_list_skipped(skipped)}<div class="wide"><table class="batch"><thead><tr>'
        f'<th scope="col">X-ray</th>{headings}</tr></thead>'
        f"<tbody>{''.join(line.content for line in rows)}</tbody></table></div>"
    )


def _list_skipped(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return ""
    named = [f"{name}: {why}" for name, why in skipped[:MOST_SKIPPED]]
    if more := len(skipped) - len(named):
        named.append(f"and {count(more, 'other file')}")
    listed = "".join(f"<li>{html.escape(one)}</li>" for one in named)
    title = f"{count(len(skipped), 'file')} in zip files skipped"
    return f'<details class="skipped" open><summary>{title}</summary><ul>{listed}</ul></details>'


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
