"""Section: what was tested, on what data, and what the audit says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pneumonia_hf.audit.run import audit_images
from pneumonia_hf.data.patients import describe_patients, named_by_file
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.subgroups import sort_key
from pneumonia_hf.reporting.numbers import to_share
from pneumonia_hf.reporting.page import Section, Table

SCHEMA_VERSION = 4  # of report.json; schema.json describes it


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the data and the model of a report, with the findings of the audit."""
    scores, seen, config = evaluation.scores, evaluation.seen, evaluation.config
    count, patients = len(scores.labels), len(set(scores.patients))
    by_file = named_by_file(scores.patients)
    normals, pneumonias = np.bincount(scores.labels, minlength=2).tolist()
    point = evaluation.predictor.operating_point
    threshold = "the model's own threshold" if evaluation.has_threshold else (
        "since the model stores no threshold"
    )  # fmt: skip
    findings = []
    if config.audit != "none":
        found = audit_images(scores.rows, quick=config.audit == "quick")
        findings = [
            {"check": check, "verdict": one.verdict, "text": one.text}
            for check, one in found.items()
        ]
    body: list[str | Table] = [
        f"{count} images of {describe_patients(patients, by_file)}: {normals} NORMAL, {pneumonias} "
        f"PNEUMONIA (prevalence {to_share(pneumonias, count)}). Labels: "
        f"{config.label_source or 'their source is not stated'}. An image is positive at or "
        f"above a probability of {point.threshold:.4f}, {threshold}. The tables count every image, "
        f"including the {evaluation.referral.referred} that the model refers to a person.",
        _describe_columns(evaluation),
        f"Of these images the model was trained on {seen['train']}, chosen on "
        f"{seen['validation']}, and {seen['test']} are of its own test split, by their bytes. "
        f"Weights: SHA-256 `{evaluation.weights_sha256 or 'unknown'}`.",
    ]
    if findings:
        body += [
            "**What the audit says of this data:**",
            Table(
                ["check", "verdict", "finding"],
                [[one["check"].replace("_", " "), one["verdict"], one["text"]] for one in findings],
            ),
        ]
    body.append("\n".join(f"- not read: {reason}" for reason in evaluation.unreadable))
    numbers = {
        "schema_version": SCHEMA_VERSION,
        "data": evaluation.data,
        "split": evaluation.split,
        "label_source": config.label_source,
        "model": evaluation.model,
        "weights_sha256": evaluation.weights_sha256,
        "tta": evaluation.predictor.tta,
        "n": count,
        "patients": patients,
        "patients_by_file_name": by_file,
        "prevalence": evaluation.prevalence,
        "external": config.external,
        "NORMAL": normals,
        "PNEUMONIA": pneumonias,
        "threshold": point.threshold,
        "refer_low": point.low,
        "refer_high": point.high,
        "resamples": config.resamples,
        "seen_in_training": seen["train"],
        "seen_in_validation": seen["validation"],
        "seen_in_test": seen["test"],
        "findings": findings,
        "unreadable": list(evaluation.unreadable),
    }
    return Section("What was tested", tuple(body), numbers)


def _describe_columns(evaluation: Evaluation) -> str:
    """Return how the images spread over the groups of each column: views, ages, sites."""
    texts = []
    for column, of_image in evaluation.groups.items():
        values = np.array([group if group is not None else "" for group in of_image])
        counts = [
            f"{value} {np.sum(values == value)} "
            f"({np.sum((values == value) & (evaluation.labels == 1))} PNEUMONIA)"
            for value in sorted(set(values[values != ""].tolist()), key=sort_key)
        ]
        texts.append(f"By {column}: {', '.join(counts)}.")
    return " ".join(texts) or (
        "The data has no metadata that makes groups: neither view nor age is known."
    )
