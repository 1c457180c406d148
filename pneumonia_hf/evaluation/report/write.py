"""A Report -> report.md, report.html, report.json, predictions and figures in one folder."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.patients import named_by_file
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation import robustness
from pneumonia_hf.evaluation.evaluate import Report
from pneumonia_hf.evaluation.report.checklist import fill_checklist
from pneumonia_hf.evaluation.report.figures import FIGURES, save_figures
from pneumonia_hf.evaluation.report.html import to_html
from pneumonia_hf.evaluation.report.markdown import to_markdown
from pneumonia_hf.evaluation.subgroups import OWN_COLUMNS
from pneumonia_hf.files import write_json
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA_VERSION = 4  # of report.json; schema.json describes it
SCHEMA_FILE = Path(__file__).with_name("schema.json")
POINTS = np.linspace(0, 1, 101)  # shares of the images at which report.json has the risk
KINDS = ("png", "svg")
FILES = ("report.json", "report.md", "report.html", "predictions.csv", "predictions.parquet")


def check_report_folder(folder: Path, overwrite: bool, files: Sequence[str] | None = None) -> None:
    """Raise a UserError if `folder` lies in a file, or one of `files` in it would be replaced.

    By default `files` are those of `write_report`.
    """
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file; --output_dir takes a folder.")
    figures = (f"{name}.{kind}" for name in FIGURES for kind in KINDS)
    existing = [name for name in files or (*FILES, *figures) if (folder / name).exists()]
    if existing and not overwrite:
        raise UserError(
            f"{folder} holds {existing[0]}; choose another --output_dir, or give --overwrite."
        )


def write_report(report: Report, folder: Path, examples: Figure | None = None) -> None:
    """Write all files of the report into `folder`, completely or not at all.

    `examples` is a sheet of images, as of `draw_examples`; without it no file holds an X-ray.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be written ({error.strerror}); choose another --output_dir."
        ) from error
    try:
        figures = list(save_figures(report, unfinished))
        names = figures
        if examples is not None:
            examples.savefig(unfinished / "examples.png", dpi=110, metadata={"Software": None})
            names = [*figures, "examples"]
        _write_predictions(report, unfinished)
        text = to_markdown(report, names)
        (unfinished / "report.md").write_text(text, encoding="utf-8")
        files = {name: unfinished / f"{name}.svg" for name in figures}
        if examples is not None:
            files["examples"] = unfinished / "examples.png"
        html = to_html(text, files, with_images=examples is not None)
        (unfinished / "report.html").write_text(html, encoding="utf-8")
        write_json(unfinished / "report.json", to_json(report))
        folder.mkdir(exist_ok=True)
        for name in (f"{name}.{kind}" for name in (*FIGURES, "examples") for kind in KINDS):
            (folder / name).unlink(missing_ok=True)  # of an older report with more sections
        # report.json comes last: with it, the report is complete.
        for file in sorted(unfinished.iterdir(), key=lambda one: one.name == "report.json"):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_predictions(report: Report, folder: Path) -> None:
    """Write one row an image, with its metadata, as CSV and Parquet."""
    import pyarrow
    from pyarrow import parquet

    scores = report.scores
    others = report.other_rows
    columns: dict[str, list[Any]] = {
        "file": [*scores.files, *(one[0] for one in others)],
        "patient": [*scores.patients, *("" for _ in others)],
        "label": [*(LABELS[one] for one in scores.labels), *(one[1] for one in others)],
        "probability": [*scores.probabilities.tolist(), *(one[2] for one in others)],
        "decision": [*scores.decisions.tolist(), *(one[3] for one in others)],
        "gate_distance": [*scores.distances.tolist(), *(None for _ in others)],
    }
    for name in scores.rows.column_names:
        if name not in OWN_COLUMNS | columns.keys():
            columns[name] = [*map(_to_cell, scores.rows[name][:]), *(None for _ in others)]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        # All digits: rounded to eight decimals, the highest scores would tie.
        table.writerows(zip(*columns.values(), strict=True))
    parquet.write_table(pyarrow.table(columns), folder / "predictions.parquet")


def _to_cell(value: Any) -> str | None:
    return None if value is None or value != value else str(value)


def _describe_faithfulness(report: Report) -> dict[str, Any] | None:
    found = report.faithfulness
    if found is None:
        return None
    results = [
        asdict(one) | {"faults": list(one.faults), "verdict": one.verdict} for one in found.results
    ]
    return {
        "images": found.images,
        "border_area": found.border_area,
        "best": found.best,
        "results": results,
    }


def to_json(report: Report) -> dict[str, Any]:
    """Return the report's numbers, without the single images, as schema.json says."""
    scores, curve, risk = report.scores, report.decision_curve, report.risk_coverage
    return {
        "schema_version": SCHEMA_VERSION,
        "data": report.data,
        "split": report.split,
        "label_source": report.label_source,
        "model": report.model,
        "weights_sha256": report.weights_sha256,
        "tta": report.tta,
        "n": len(scores.labels),
        "patients": len(set(scores.patients)),
        "patients_by_file_name": named_by_file(scores.patients),
        "prevalence": float(np.mean(scores.labels)),
        "external": report.config.external,
        "NORMAL": int(np.sum(scores.labels == 0)),
        "PNEUMONIA": int(np.sum(scores.labels == 1)),
        "threshold": report.operating_point.threshold,
        "refer_low": report.operating_point.low,
        "refer_high": report.operating_point.high,
        "resamples": report.config.resamples,
        "seen_in_training": report.seen_in_training,
        "seen_in_validation": report.seen_in_validation,
        "seen_in_test": report.seen_in_test,
        "findings": [asdict(one) for one in report.findings],
        "confusion": report.confusion,
        "metrics": {name: asdict(interval) for name, interval in report.metrics.items()},
        "thresholds": [asdict(one) for one in report.thresholds],
        "predictive_values": [asdict(one) for one in report.predictive_values],
        "decision_curve": {
            "risks": curve.risks.tolist(),
            "model": curve.model.tolist(),
            "everyone": curve.everyone.tolist(),
        },
        "calibration_p": report.calibration.p,
        "calibration": asdict(report.calibration),
        "referred": report.referral.referred,
        "referral": asdict(report.referral),
        "referral_by_threshold": asdict(report.referral_by_threshold),
        "referral_reasons": [asdict(one) for one in report.referral_reasons],
        "risk_coverage": {
            "coverage": POINTS[1:].tolist(),
            "risk": np.interp(POINTS[1:], risk.coverage, risk.risk).tolist(),
            "aurc": asdict(risk.aurc),
            "excess": risk.excess,
        },
        "subgroups": [
            asdict(one)
            | {"gaps": {k: asdict(gap) | {"flagged": gap.flagged} for k, gap in one.gaps.items()}}
            for one in report.subgroups
        ],
        "stratified": [asdict(one) for one in report.stratified],
        "robustness": robustness.to_json(report.robustness) if report.robustness else None,
        "faithfulness": _describe_faithfulness(report),
        "sites": [asdict(one) | {"seen": one.seen} for one in report.sites],
        "other_classes": [asdict(one) for one in report.others],
        "published": asdict(report.published) if report.published else None,
        "checklist": [
            {"topic": item.topic, "tripod": item.tripod, "claim": item.claim, "answer": answer}
            for item, answer in fill_checklist(report)
        ],
        "comparison": asdict(report.comparison) if report.comparison else None,
        "unreadable": list(report.unreadable),
        "notes": list(report.notes),
    }
