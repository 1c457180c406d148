"""Write the model card from the files of the model folder, and that of an ensemble."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.patients import describe_patients
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import read_json, replace_text, write_json
from pneumonia_hf.hub import HUB_ID
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.model_folder import (
    CARD_FILE,
    ENSEMBLE_FILE,
    GATE_FILE,
    REPORTS_FILE,
    RUN_FILE,
)
from pneumonia_hf.models.run_manifest import RunManifest, read_manifest
from pneumonia_hf.reporting.numbers import read_interval, to_text
from pneumonia_hf.reporting.page import markdown_table
from pneumonia_hf.statistics.hospitals import OF_HOSPITALS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

CARD_TEMPLATE = Path(__file__).with_name("model_card.md")
ENSEMBLE_TEMPLATE = Path(__file__).with_name("ensemble_card.md")
PLACEHOLDER = "THIS_REPOSITORY"  # in a card, until it is pushed
HUB_METRICS = {"auroc": "roc_auc", "sensitivity": "recall", "brier": "brier_score"}
# Parts of report.json that stay out of the model folder: neither card nor app show them, and some
# name files, and so patients.
NOT_IN_CARD = {
    "findings", "unreadable", "thresholds", "predictive_values", "decision_curve",
    "referral_reasons", "risk_coverage", "sites", "comparison", "published", "checklist",
}  # fmt: skip
# A report shows miscalibration below this p-value and above this calibration error.
MISFIT_P, MISFIT_ERROR = 0.01, 0.05


def add_report(folder: Path, report: dict[str, Any]) -> None:
    """Add a report to the model folder, replacing an older one of the same data and split.

    It has `data`, `split`, `n`, `threshold` and `metrics`, as in report.json. What neither card
    nor app show is left out.
    """
    report = shown_of_report(report)
    reports = read_json(folder / REPORTS_FILE, otherwise=[])
    key = (report["data"], report["split"])
    reports = [one for one in reports if (one["data"], one["split"]) != key]
    write_json(folder / REPORTS_FILE, [*reports, report])
    write_card(folder)


def shown_of_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of report.json that card and app show; none of them names a file."""
    return {name: value for name, value in report.items() if name not in NOT_IN_CARD}


def write_card(folder: Path) -> None:
    """Write the model card from the folder's run.json and reports.json."""
    replace_text(folder / CARD_FILE, str(make_card(folder)))


def make_card(folder: Path) -> ModelCard:
    """Return the model card; every number in it comes from the folder's files."""
    from huggingface_hub import EvalResult, ModelCard

    manifest = read_manifest(folder)
    reports = read_json(folder / REPORTS_FILE, otherwise=[])
    if not manifest.content:
        raise UserError(f"{folder} holds no saved model: {RUN_FILE} is missing.")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="unknown",  # an id of the Hub belongs here, and the images have none
            dataset_config=report["data"],  # results of one type, configuration and split are one
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
    data = _make_metadata(manifest, results)
    return ModelCard.from_template(
        data,
        placeholder=PLACEHOLDER,
        hospitals=hospital_table(manifest.validation.hospitals),
        template_path=str(CARD_TEMPLATE),
        run=manifest.content,
        gate=_describe_gate(folder),
        reports=reports,
        to_text=lambda numbers: to_text(read_interval(numbers)),
        count_patients=describe_patients,
        misfit=find_misfit(reports),
    )


def make_ensemble_card(folder: Path, members: Sequence[str]) -> ModelCard:
    """Return the card of an ensemble; `members` are folders within its own."""
    from huggingface_hub import ModelCard

    manifests = [read_manifest(folder / member) for member in members]
    return ModelCard.from_template(
        _make_metadata(manifests[0], [], {one.license for one in manifests}),
        placeholder=PLACEHOLDER,
        template_path=str(ENSEMBLE_TEMPLATE),
        ensemble=read_json(folder / ENSEMBLE_FILE, otherwise={}),
        members=dict(zip(members, manifests, strict=True)),
        to_text=lambda numbers: to_text(read_interval(numbers)),
    )


def _describe_gate(folder: Path) -> dict[str, bool]:
    """Return what the input gate in a model folder does; nothing without a gate."""
    from safetensors import safe_open

    if not (folder / GATE_FILE).exists():
        return {}
    with safe_open(folder / GATE_FILE, framework="numpy") as gate:
        refers = bool(np.isfinite(gate.get_tensor("limit")))  # where it is infinite, none is far
        return {"refers": refers, "refuses": "weights" in gate.keys()}  # gates of 0.5 have none


def _make_metadata(
    manifest: RunManifest, results: Sequence[EvalResult], licenses: Collection[str | None] = ()
) -> ModelCardData:
    """Return a card's metadata; the licences of all members must be the same, or it is `other`."""
    from huggingface_hub import ModelCardData

    base = manifest.base_model
    return ModelCardData(
        license=manifest.license if len(licenses) < 2 else "other",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["chest-x-ray", "pneumonia", "medical-imaging", "image-classification"],
        base_model=base if base and HUB_ID.match(base) else None,
        datasets=manifest.datasets or None,
        metrics=["accuracy", "roc_auc", "f1", "precision", "recall"],
        model_name="pneumonia-hf",
        eval_results=list(results) or None,
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
