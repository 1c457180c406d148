"""Several models side by side: plain, with another frame, and at a second site."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.sections.robustness import GAP
from pneumonia_hf.files import read_json
from pneumonia_hf.reporting.numbers import read_interval
from pneumonia_hf.reporting.page import markdown_table
from pneumonia_hf.statistics.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("internal test", "frame of the other class, 20%", "second site")
COLOURS = ("#1f5fa8", "#c0392b", "#3b7a3f")


@dataclass(frozen=True)
class ModelRow:
    """The AUROC of a model in each of COLUMNS; None: not measured."""

    name: str
    areas: tuple[Interval | None, ...]
    # Whether the second site has images in the model's own splits; None without such a report.
    knows_site: bool | None = None


def read_row(text: str) -> ModelRow:
    """Return the row `NAME=INTERNAL_REPORT,OTHER_REPORT`; each is a folder with a report.json.

    Raises:
        UserError: not of that form; no report; the reports are of different weights.
    """
    name, equals, folders = text.partition("=")
    paths = [Path(one) for one in folders.split(",") if one]
    if not (name and equals) or len(paths) not in (1, 2):
        raise UserError(f"{text!r} is not NAME=INTERNAL_REPORT,OTHER_REPORT.")
    reports: list[dict[str, Any]] = []
    for path in paths:
        found = read_json(path / "report.json", otherwise=None)
        if found is None:
            raise UserError(f"{path} holds no report.json; give folders of evaluate_model.py.")
        reports.append(found)
    if len({one["weights_sha256"] for one in reports}) > 1:
        raise UserError(f"The reports of {name} are of different weights; evaluate one model.")
    internal, other = reports[0], reports[1] if len(reports) > 1 else None
    copies = (internal.get("robustness") or {}).get("results", ())
    swapped = [one["auroc"] for one in copies if (one["name"], one["level"]) == GAP]
    measured = (internal["metrics"]["auroc"], swapped[0] if swapped else None)
    areas = tuple(map(read_interval, (*measured, other and other["metrics"]["auroc"])))
    if other is None:
        return ModelRow(name, areas)
    knows = any(other[f"seen_in_{split}"] for split in ("training", "validation", "test"))
    return ModelRow(name, areas, knows)


def to_table(rows: list[ModelRow]) -> str:
    """Return the rows in Markdown."""
    cells = [
        [
            one.name,
            *("-" if area is None else f"{area.value:.3f}" for area in one.areas),
            {None: "-", True: "yes", False: "no"}[one.knows_site],
        ]
        for one in rows
    ]
    return markdown_table(["model", *COLUMNS, "knows the second site"], cells)


def draw_overview(rows: list[ModelRow]) -> Figure:
    """Return a figure of the rows with 95% intervals; 0.5 is chance.

    The mark of a second site is hollow if the model has not seen it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.75 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        for at, (area, colour) in enumerate(zip(row.areas, COLOURS, strict=True)):
            if area is None:
                continue
            y = place + (at - 1) * 0.24
            axes.plot([area.low, area.high], [y, y], color=colour, linewidth=2)
            face = "white" if at == 2 and row.knows_site is False else colour
            axes.plot(area.value, y, "osD"[at], color=colour, markerfacecolor=face, markersize=6)
            # Beside the interval, or without one beside the mark.
            low, high = np.nan_to_num([area.low, area.high], nan=area.value)
            side, end = ("left", high + 0.012) if low < 0.25 else ("right", low - 0.012)
            axes.text(end, y, f"{area.value:.3f}", va="center", ha=side, fontsize=8)
    for colour, marker, name in zip(COLOURS, "osD", COLUMNS, strict=True):
        axes.plot([], [], marker, color=colour, label=name)
    if any(row.knows_site is False for row in rows):
        axes.plot([], [], "D", color=COLOURS[2], markerfacecolor="white", label="not seen")
    axes.axvline(0.5, color="#767676", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [one.name for one in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel="AUROC with 95% interval (0.5: chance)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure
