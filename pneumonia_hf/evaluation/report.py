"""A Report: the sections of an evaluation, and its files in one folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia_hf.data.table import NO_METADATA, RESERVED
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.labels import LABELS
from pneumonia_hf.reporting.page import Page
from pneumonia_hf.reporting.write import write_page
from pneumonia_hf.statistics.intervals import Interval

SCHEMA_FILE = Path(__file__).with_name("schema.json")  # of report.json
# All that reports may have.
FIGURES = ("confusion_matrix", "roc_curve", "precision_recall", "decision_curve", "calibration",
           "risk_coverage", "subgroups", "robustness", "phantom", "sites", "examples")  # fmt: skip
FIGURE_FILES = tuple(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg"))
FILES = (
    "report.json", "report.md", "report.html", "predictions.csv", "predictions.parquet",
    *FIGURE_FILES,
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The scores of a model on one data set, and all that was measured from them."""

    evaluation: Evaluation
    page: Page

    @property
    def metrics(self) -> dict[str, Interval]:
        """All metrics at the model's threshold, with their intervals."""
        return self.evaluation.metrics

    @property
    def numbers(self) -> dict[str, Any]:
        """The contents of report.json, as schema.json describes them; NaN is not yet null."""
        return self.page.numbers


def write_report(report: Report, folder: Path) -> None:
    """Write all files of the report into `folder`, completely or not at all.

    Raises:
        UserError: the folder cannot be made.
    """
    write_page(
        report.page,
        folder,
        older=FIGURE_FILES,
        write_more=lambda unfinished: write_predictions(report.evaluation, unfinished),
    )


def write_predictions(evaluation: Evaluation, folder: Path) -> None:
    """Write one row an image, with its metadata, as predictions.csv and predictions.parquet."""
    import pyarrow
    from pyarrow import parquet

    scores, pairs = evaluation.scores, evaluation.others.rows
    images, found = [one for one, _ in pairs], [one for _, one in pairs]
    columns: dict[str, list[Any]] = {
        "file": [*scores.files, *(one.file for one in images)],
        "patient": [*scores.patients, *(one.cells.get("patient_id", "") for one in images)],
        "label": [*(LABELS[one] for one in scores.labels), *(one.folder for one in images)],
        "probability": [*scores.probabilities.tolist(), *(one.probability for one in found)],
        "decision": [*scores.decisions.tolist(), *(one.decision for one in found)],
        "gate_distance": [*scores.distances.tolist(), *(one.distance for one in found)],
    }
    if not np.isnan(scores.other).all():
        columns["other_abnormal"] = [*scores.other.tolist(), *(one.other_abnormal for one in found)]
    for name in scores.rows.column_names:
        if name not in NO_METADATA | columns.keys():
            cells = [*map(_to_cell, scores.rows[name][:])]
            # All images are of one source; a data set renames a reserved column.
            key = name.rstrip("_") if name.rstrip("_") in RESERVED else name
            more = [cells[0] if name == "source" else one.cells.get(key) for one in images]
            columns[name] = cells + more
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        # All digits: rounded to eight decimals, the highest scores would tie.
        table.writerows(zip(*columns.values(), strict=True))
    parquet.write_table(pyarrow.table(columns), folder / "predictions.parquet")


def _to_cell(value: Any) -> str | None:
    return None if value is None or value != value else str(value)
