"""The hospitals of the validation images: what the threshold gives in each, and its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pneumonia_hf.statistics.intervals import draw_patients
from pneumonia_hf.statistics.log_odds import to_logit
from pneumonia_hf.statistics.metrics import bootstrap_intervals
from pneumonia_hf.statistics.thresholds import list_measurable

OF_HOSPITALS = ("auroc", "sensitivity", "specificity")
QUANTILES = np.linspace(0, 1, 51)
CLASSES = ("normals", "pneumonias")
# Where enough of the normals are images of another disease: how often they come differs as much
# between places as the share of pneumonias.
THREE_CLASSES = ("healthy", "others", "pneumonias")
FEWEST_OF_CLASS = 20


def rates_at(log_odds: Mapping[str, Sequence[float]], threshold: float) -> dict[str, float]:
    """Return sensitivity and specificity at a threshold, from the QUANTILES of a hospital."""
    at = to_logit(np.array(threshold))
    below = {kind: float(np.interp(at, log_odds[kind], QUANTILES)) for kind in CLASSES}
    return {"sensitivity": 1 - below["pneumonias"], "specificity": below["normals"]}


def measure_hospitals(
    labels: Sequence[int],
    probabilities: np.ndarray,
    threshold: float,
    patients: Sequence[str],
    hospitals: Sequence[str],
    views: Sequence[str | None] | None,
    resamples: int,
    other_disease: Sequence[bool] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the results of each hospital, and of each of its views, as run.json stores them.

    Of hospitals and views with too few images for `list_measurable` there are none.

    Returns:
        By hospital, or "hospital, view": `patients` and the number of images of each class; AUROC,
        sensitivity and specificity at `threshold` as value, low and high; of a hospital also
        `log_odds`, the QUANTILES of its images of each class, and of THREE_CLASSES with their
        numbers if FEWEST_OF_CLASS or more of its normals are `other_disease` and as many are not.
    """
    labels, names, patients = map(np.asarray, (labels, hospitals, patients))
    groups = {name: names == name for name in list_measurable(labels, names)}
    if views is not None:
        cells = np.array([f"{name}, {view}" if view else "" for name, view in
                          zip(hospitals, views, strict=True)])  # fmt: skip
        groups |= {cell: cells == cell for cell in list_measurable(labels, cells) if cell}
    found = {}
    for name, inside in sorted(groups.items()):
        images = labels[inside], probabilities[inside], threshold, patients[inside]
        draws = draw_patients(labels[inside], patients[inside], resamples)
        metrics = bootstrap_intervals(*images, draws, OF_HOSPITALS)
        of_class = {kind: inside & (labels == n) for n, kind in enumerate(CLASSES)}
        found[name] = {
            "patients": len(set(patients[inside].tolist())),
            **{kind: int(np.sum(of)) for kind, of in of_class.items()},
            **{metric: asdict(interval) for metric, interval in metrics.items()},
        }
        if name in names:
            if other_disease is not None:
                sick = of_class["normals"] & np.asarray(other_disease)
                parts = {"healthy": of_class["normals"] & ~sick, "others": sick}
                if min(map(np.sum, parts.values())) >= FEWEST_OF_CLASS:
                    of_class |= parts
                    found[name] |= {kind: int(np.sum(of)) for kind, of in parts.items()}
            found[name]["log_odds"] = {
                kind: np.quantile(to_logit(probabilities[of]), QUANTILES).round(4).tolist()
                for kind, of in of_class.items()
            }
    return found
