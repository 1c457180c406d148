"""A Report: the sections of an evaluation, and its files in one folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia_hf.data.table import NO_METADATA
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

    scores, others = evaluation.scores, evaluation.others.rows
    columns: dict[str, list[Any]] = {
        "file": [*scores.files, *(one[0] for one in others)],
        "patient": [*scores.patients, *("" for _ in others)],
        "label": [*(LABELS[one] for one in scores.labels), *(one[1] for one in others)],
        "probability": [*scores.probabilities.tolist(), *(one[2] for one in others)],
        "decision": [*scores.decisions.tolist(), *(one[3] for one in others)],
        "gate_distance": [*scores.distances.tolist(), *(None for _ in others)],
    }
    if not np.isnan(scores.other).all():
        columns["other_abnormal"] = [*scores.other.tolist(), *(None for _ in others)]
    for name in scores.rows.column_names:
        if name not in NO_METADATA | columns.keys():
            columns[name] = [*map(_to_cell, scores.rows[name][:]), *(None for _ in others)]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        # All digits: rounded to eight decimals, the highest scores would tie.
        table.writerows(zip(*columns.values(), strict=True))
    parquet.write_table(pyarrow.table(columns), folder / "predictions.parquet")


def _to_cell(value: Any) -> str | None:
    return None if value is None or value != value else str(value)
