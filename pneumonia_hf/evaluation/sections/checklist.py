"""Section: items of TRIPOD+AI and CLAIM 2024 that a report fills, and those that people must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pneumonia_hf
from pneumonia_hf.data.patients import describe_patients
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.reporting.numbers import read_interval, to_count, to_slope, to_text
from pneumonia_hf.reporting.page import Section, Table

OPEN = "open: to be written by those who do the study"
Numbers = Mapping[str, Any]  # of the sections before, as in report.json


@dataclass(frozen=True)
class Item:
    """What a guideline asks for, in our words, and what the report says to it."""

    topic: str
    tripod: str  # number in TRIPOD+AI (Collins et al. 2024)
    claim: str  # section of CLAIM 2024 (Tejani et al. 2024)
    answer: Callable[[Numbers], str] | None  # None: only people can say it


def _count_data(numbers: Numbers) -> str:
    patients = describe_patients(numbers["patients"], numbers["patients_by_file_name"])
    return (
        f"{numbers['n']} images of {patients}: {numbers['NORMAL']} NORMAL, "
        f"{numbers['PNEUMONIA']} PNEUMONIA; {len(numbers['unreadable'])} unreadable and left out"
    )


def _describe_partition(numbers: Numbers) -> str:
    seen = numbers["seen_in_training"] + numbers["seen_in_validation"]
    site = "another site, as stated" if numbers["external"] else "not stated to be external"
    return (
        f"{seen} of the images were used to train or choose the model, by their bytes; other "
        f"images of the same patients are not recognised here; {site}"
    )


def _describe_groups(numbers: Numbers) -> str:
    columns = sorted({one["column"] for one in numbers["subgroups"]})
    return f"by {', '.join(columns)}; see Subgroups" if columns else "the data has no such columns"


def _describe_failures(numbers: Numbers) -> str:
    counts = numbers["confusion"]
    return (
        f"{to_count(counts['false_negative'], 'pneumonia')} missed and "
        f"{to_count(counts['false_positive'], 'normal')} called pneumonia; see Examples and "
        f"predictions.csv"
    )


def _describe_robustness(numbers: Numbers) -> str:
    found = numbers["robustness"]
    if found is None:
        return "not measured in this report"
    return f"worst case AUROC {found['worst']['auroc']:.3f}; see Robustness"


def _describe_explanations(numbers: Numbers) -> str:
    found = numbers["faithfulness"]
    if found is None:
        return "not tested in this report"
    passing = [one["method"] for one in found["results"] if one["verdict"] == "pass"]
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
         lambda numbers: "as stored with the model (preprocessor_config.json), without a crop"),
    Item("model and its weights", "22", "Methods: model",
         lambda numbers: f"{numbers['model']}, SHA-256 "
         f"{numbers['weights_sha256'][:12] or 'unknown'}"),
    Item("threshold and how it was chosen", "12", "Methods: evaluation",
         lambda numbers: f"{numbers['threshold']:.4f}; see Threshold"),
    Item("discrimination with intervals", "23", "Results: model performance",
         lambda numbers: f"AUROC {to_text(read_interval(numbers['metrics']['auroc']))}; all others "
         f"under Discrimination"),
    Item("calibration", "23", "Results: model performance",
         lambda numbers: f"slope {to_slope(read_interval(numbers['calibration']['slope']))}; see "
         f"Calibration"),
    Item("fairness: performance in subgroups", "14, 23", "Results: model performance",
         _describe_groups),
    Item("robustness", "12", "Methods: evaluation", _describe_robustness),
    Item("explanations and their validity", "15", "Methods: evaluation", _describe_explanations),
    Item("failures", "26", "Results: model performance", _describe_failures),
    Item("software", "18", "Other information",
         lambda numbers: f"pneumonia-hf {pneumonia_hf.__version__}, Apache-2.0"),
    Item("availability of data, code and protocol; registration", "18", "Other information", None),
    Item("involvement of patients and the public", "19", "Other information", None),
    Item("interpretation, limitations and use in practice", "25, 26, 27", "Discussion", None),
)  # fmt: skip


def measure(evaluation: Evaluation, numbers: Numbers) -> Section:
    """Return each item with what the report says to it, or OPEN."""
    header = ("topic", "tripod", "claim", "answer")
    rows = [
        (item.topic, item.tripod, item.claim, item.answer(numbers) if item.answer else OPEN)
        for item in ITEMS
    ]
    body = (
        "What TRIPOD+AI (Collins et al. 2024, doi 10.1136/bmj-2023-078378) and CLAIM 2024 (Tejani "
        "et al. 2024, doi 10.1148/ryai.240300) ask for, in our words. What only people can say is "
        "left open.",
        Table(["item", "TRIPOD+AI", "CLAIM 2024", "answer"], rows),
    )
    items = [dict(zip(header, row, strict=True)) for row in rows]
    return Section("Checklist", body, {"checklist": items})
