"""Write the model card from the files of the model folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumonia_hf.data.patients import describe_patients
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import read_json, replace_text, write_json
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.model_folder import CARD_FILE, REPORTS_FILE, RUN_FILE
from pneumonia_hf.models.run_manifest import read_manifest
from pneumonia_hf.reporting.numbers import read_interval, to_text
from pneumonia_hf.reporting.page import markdown_table
from pneumonia_hf.statistics.hospitals import OF_HOSPITALS

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

CARD_TEMPLATE = Path(__file__).with_name("model_card.md")
HUB_METRICS = {"auroc": "roc_auc", "sensitivity": "recall", "brier": "brier_score"}
# Parts of report.json that stay out of the model folder.
NOT_IN_CARD = {
    "findings", "thresholds", "predictive_values", "decision_curve", "referral_reasons",
    "risk_coverage", "sites", "comparison", "published", "checklist",
}  # fmt: skip
# A report shows miscalibration below this p-value and above this calibration error.
MISFIT_P, MISFIT_ERROR = 0.01, 0.05


def add_report(folder: Path, report: dict[str, Any]) -> None:
    """Add a report to the model folder, replacing an older one of the same data and split.

    It has `data`, `split`, `n`, `threshold` and `metrics`, as in report.json. What neither card
    nor app show is left out.
    """
    report = {name: value for name, value in report.items() if name not in NOT_IN_CARD}
    reports = read_json(folder / REPORTS_FILE, otherwise=[])
    key = (report["data"], report["split"])
    reports = [one for one in reports if (one["data"], one["split"]) != key]
    write_json(folder / REPORTS_FILE, [*reports, report])
    write_card(folder)


def write_card(folder: Path) -> None:
    """Write the model card from the folder's run.json and reports.json."""
    replace_text(folder / CARD_FILE, str(make_card(folder)))


def make_card(folder: Path) -> ModelCard:
    """Return the model card; every number in it comes from the folder's files."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    manifest = read_manifest(folder)
    reports = read_json(folder / REPORTS_FILE, otherwise=[])
    if not manifest.content:
        raise UserError(f"{folder} holds no saved model: {RUN_FILE} is missing.")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", report["data"].lower()).strip("-") or "data",
            dataset_name=f"{report['data']} ({report['split']})",
            dataset_split=report["split"],
            metric_type=HUB_METRICS.get(name, name),
            metric_name=name,
            metric_value=round(metric["value"], 4),
        )
        for report in reports
        for name, metric in report["metrics"].items()
        if metric["value"] is not None
    ]
    data = ModelCardData(
        license=manifest.license,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["chest-x-ray", "pneumonia", "medical-imaging", "image-classification"],
        base_model=manifest.base_model,
        metrics=["accuracy", "roc_auc", "f1", "precision", "recall"],
        model_name="pneumonia-hf",
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        hospitals=hospital_table(manifest.validation.hospitals),
        template_path=str(CARD_TEMPLATE),
        run=manifest.content,
        reports=reports,
        to_text=lambda numbers: to_text(read_interval(numbers)),
        count_patients=describe_patients,
        misfit=find_misfit(reports),
    )


def hospital_table(hospitals: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what `measure_hospitals` found in Markdown; nothing of a single hospital."""
    if len(hospitals) < 2:
        return ""
    rows = [
        [name, one["patients"], one["normals"], one["pneumonias"],
         *(to_text(read_interval(one[metric])) for metric in OF_HOSPITALS)]
        for name, one in hospitals.items()
    ]  # fmt: skip
    return markdown_table(["within", "patients", *LABELS, "AUROC", *OF_HOSPITALS[1:]], rows)


def find_misfit(reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the external report with the largest significant miscalibration, or None.

    Significant: calibrated probabilities would fit the labels as badly in at most 1% of samples,
    and the expected calibration error with equal class weights is above 0.05. A smaller error
    does not matter, however many images show it.
    """
    bad = [
        one
        for one in reports
        if one.get("external")
        and (one.get("calibration_p") or 0) < MISFIT_P
        and one["metrics"]["ece_balanced"]["value"] > MISFIT_ERROR
    ]
    return max(bad, key=lambda one: one["metrics"]["ece_balanced"]["value"], default=None)
