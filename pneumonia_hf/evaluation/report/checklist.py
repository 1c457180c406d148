"""The items of TRIPOD+AI and CLAIM 2024: those that a report fills, and those that people must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import pneumonia_hf
from pneumonia_hf.data.patients import describe_patients, named_by_file
from pneumonia_hf.evaluation.report.interval_text import to_short, to_slope

if TYPE_CHECKING:
    from pneumonia_hf.evaluation.evaluate import Report

OPEN = "open: to be written by those who do the study"


@dataclass(frozen=True)
class Item:
    """What a guideline asks for, in our words, and what the report says to it."""

    topic: str
    tripod: str  # number in TRIPOD+AI (Collins et al. 2024)
    claim: str  # section of CLAIM 2024 (Tejani et al. 2024)
    answer: Callable[[Report], str] | None  # None: only people can say it


def _count_data(report: Report) -> str:
    scores = report.scores
    normals, pneumonias = np.bincount(scores.labels, minlength=2)
    return (
        f"{len(scores.labels)} images of "
        f"{describe_patients(len(set(scores.patients)), named_by_file(scores.patients))}: "
        f"{normals} NORMAL, "
        f"{pneumonias} PNEUMONIA; {len(report.unreadable)} unreadable and left out"
    )


def _describe_partition(report: Report) -> str:
    seen = report.seen_in_training + report.seen_in_validation
    site = "another site, as stated" if report.config.external else "not stated to be external"
    return (
        f"{seen} of the images were used to train or choose the model, by their bytes; other "
        f"images of the same patients are not recognised here; {site}"
    )


def _describe_metrics(report: Report) -> str:
    area = report.metrics["auroc"]
    return (
        f"AUROC {area.value:.3f} (95% interval {area.low:.3f} to {area.high:.3f}, bootstrap over "
        f"patients); all others under Discrimination"
    )


def _describe_calibration(report: Report) -> str:
    return f"slope {to_slope(report.calibration.slope, to_short)}; see Calibration"


def _describe_groups(report: Report) -> str:
    columns = sorted({one.column for one in report.subgroups})
    return f"by {', '.join(columns)}; see Subgroups" if columns else "the data has no such columns"


def _describe_failures(report: Report) -> str:
    counts = report.confusion
    return (
        f"{counts['false_negative']} pneumonias missed and {counts['false_positive']} normals "
        f"called pneumonia; see Examples and predictions.csv"
    )


def _describe_robustness(report: Report) -> str:
    found = report.robustness
    if found is None:
        return "not measured in this report"
    return f"worst case AUROC {found.worst.auroc.value:.3f}; see Robustness"


def _describe_explanations(report: Report) -> str:
    found = report.faithfulness
    if found is None:
        return "not tested in this report"
    passing = [one.method for one in found.results if one.verdict == "pass"]
    return f"pass: {', '.join(passing) or 'none'}; see Do the attribution maps mean anything"


ITEMS: tuple[Item, ...] = (
    Item("intended use, setting and users", "3", "Introduction", None),
    Item("source of the data, dates, consent, ethics approval", "5, 17", "Methods: data", None),
    Item("how patients were sampled, inclusion and exclusion", "6", "Methods: data", None),
    Item("how labels were made, by whom, agreement", "8", "Methods: reference standard", None),
    Item("why this sample size", "10", "Methods: data partitions", None),
    Item("numbers of images, patients, classes, missing data", "11, 20", "Results: data",
         _count_data),
    Item("training and test data kept apart", "12, 16", "Methods: data partitions",
         _describe_partition),
    Item("preprocessing", "7", "Methods: data",
         lambda report: "as stored with the model (preprocessor_config.json), without a crop"),
    Item("model and its weights", "22", "Methods: model",
         lambda report: f"{report.model}, SHA-256 {report.weights_sha256[:12] or 'unknown'}"),
    Item("threshold and how it was chosen", "12", "Methods: evaluation",
         lambda report: f"{report.operating_point.threshold:.4f}, "
         + ("the model's own" if report.calibrated else "since the model stores none")),
    Item("discrimination with intervals", "23", "Results: model performance", _describe_metrics),
    Item("calibration", "23", "Results: model performance", _describe_calibration),
    Item("fairness: performance in subgroups", "14, 23", "Results: model performance",
         _describe_groups),
    Item("robustness", "12", "Methods: evaluation", _describe_robustness),
    Item("explanations and their validity", "15", "Methods: evaluation", _describe_explanations),
    Item("failures", "26", "Results: model performance", _describe_failures),
    Item("software", "18", "Other information",
         lambda report: f"pneumonia-hf {pneumonia_hf.__version__}, Apache-2.0"),
    Item("availability of data, code and protocol; registration", "18", "Other information", None),
    Item("involvement of patients and the public", "19", "Other information", None),
    Item("interpretation, limitations and use in practice", "25, 26, 27", "Discussion", None),
)  # fmt: skip


def fill_checklist(report: Report) -> list[tuple[Item, str]]:
    """Return each item with what the report says to it, or OPEN."""
    return [(item, item.answer(report) if item.answer else OPEN) for item in ITEMS]
