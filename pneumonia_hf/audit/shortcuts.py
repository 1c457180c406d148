"""Shortcuts: how well something outside the lungs predicts the label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.audit.dataset import Finding, Xrays
from pneumonia_hf.audit.label_errors import MOST_ROWS, cross_validate, has_enough_groups
from pneumonia_hf.data.ages import to_number
from pneumonia_hf.data.table import CLASS, NO_METADATA, column
from pneumonia_hf.statistics.intervals import bootstrap, draw_patients
from pneumonia_hf.statistics.metrics import auroc

if TYPE_CHECKING:
    from pneumonia_hf.data.pixel_store import XrayPixels

# Lower end of the 95% interval of the AUROC from a shortcut alone.
SHORTCUT_WARN, SHORTCUT_FAIL = 0.6, 0.9
MOST_TEXTS = 20  # different texts in a metadata column that is measured
RESAMPLES = 200


def check_shortcuts(xrays: Xrays) -> Finding:
    """Shortcuts: the AUROC from one property outside the lungs alone, cross-validated by patient.

    The border is the outer 4% of the image: arms, neck, abdomen, markers and collimation.
    """
    extras = _read_extras(xrays)
    areas, not_measured = measure_shortcuts(xrays.images, xrays.label, xrays.related, extras)
    if not areas:
        return Finding("warn", 0, "not checked: too few patients of a class.")
    strong = {name: one for name, one in areas.items() if one["low"] >= SHORTCUT_WARN}
    # A network does not see metadata, and the image may or may not show what they predict.
    worst = max(one["low"] for name, one in areas.items() if not name.startswith("metadata:"))
    ranked = sorted(areas, key=lambda name: -areas[name]["auroc"])
    text = ", ".join(f"{name} {areas[name]['auroc']:.3f}" for name in ranked) + "."
    if renamed := [name for name in extras if _has_one_label_each(extras[name], xrays.label)]:
        text += f" Each value of {', '.join(renamed)} has one label: it may be the label itself."
    return Finding(
        "fail" if worst >= SHORTCUT_FAIL else "warn" if strong else "pass",
        len(strong),
        f"AUROC from each alone: {text}",
        tuple({"shortcut": name, **one} for name, one in strong.items()),
        more={"auroc": areas, "not_measured": not_measured},
    )


def _read_extras(xrays: Xrays) -> dict[str, np.ndarray]:
    """Return the columns that may be shortcuts: metadata, and the source if there are several."""
    names = (name for name in xrays.data.column_names if name not in NO_METADATA)
    columns = {name: column(xrays.data, name).to_pandas().to_numpy() for name in names}
    columns.pop(CLASS, None)  # the label follows from it
    if len(set(columns.get("source", ()))) < 2:
        columns.pop("source", None)
    return columns


def _has_one_label_each(values: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether a column has few values, and each is of images of one label."""
    known = [(str(value), label) for value, label in zip(values, labels, strict=True)]
    pairs, values = set(known), {value for value, _ in known}
    return 1 < len(values) == len(pairs) <= MOST_TEXTS


def measure_shortcuts(
    images: XrayPixels, labels: np.ndarray, groups: np.ndarray, extras: dict[str, np.ndarray]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the AUROC for the label from each property outside the lungs alone.

    Boosted trees, cross-validated by patient; the 95% interval is a bootstrap of patients.
    `groups` is as for `find_label_errors`; `extras` are further columns, [N] each, in which an
    empty cell is a value. Columns with more than 20 different texts are not measured.

    Returns:
        auroc, low and high of each property, or nothing if a class has too few patients; and the
        columns that were not measured.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = _sample_groups(groups)
    labels, groups = labels[rows], groups[rows]
    if not has_enough_groups(labels, groups):
        return {}, list(extras)
    width = images.facts("width")[rows].astype(np.float32)
    height = images.facts("height")[rows].astype(np.float32)
    kinds = np.char.add(images.facts("format")[rows], images.facts("mode")[rows])
    properties = {
        "border": images.facts("border")[rows].astype(np.float32),
        "size": np.stack([width, height], axis=1),
        "aspect_ratio": (width / height)[:, None],
        "brightness": images.facts("mean")[rows][:, None],
        "file_kind": np.unique(kinds, return_inverse=True)[1].astype(np.float32)[:, None],
    }
    not_measured = []
    for name, cells in extras.items():
        values = _as_numbers(cells[rows])
        if values is None:
            not_measured.append(name)
        else:
            properties["source" if name == "source" else f"metadata:{name}"] = values
    areas = {}
    for name, values in properties.items():
        if len(np.unique(values, axis=0)) < 2:  # a constant predicts nothing
            areas[name] = {"auroc": 0.5, "low": 0.5, "high": 0.5}
            continue
        probabilities = cross_validate(
            values,
            labels,
            groups,
            lambda: HistGradientBoostingClassifier(
                max_iter=40,
                max_leaf_nodes=8,
                min_samples_leaf=int(np.clip(len(rows) // 40, 2, 20)),
                early_stopping=False,
                random_state=0,
            ),
        )
        areas[name] = _area_over_patients(labels, probabilities, groups)
    return areas, not_measured


def _as_numbers(values: np.ndarray) -> np.ndarray | None:
    """Return a metadata column as numbers, [N, 1], NaN for an empty cell; None for free text."""
    filled = np.array([value is not None and value == value for value in values], dtype=bool)
    numbers = np.full(len(values), np.nan)
    try:
        numbers[filled] = [to_number(value) for value in values[filled]]
    except ValueError:
        names, codes = np.unique([str(value) for value in values[filled]], return_inverse=True)
        if len(names) > MOST_TEXTS:
            return None  # such as names of patients, dates, remarks
        numbers[filled] = codes
    return numbers[:, None]


def _area_over_patients(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray
) -> dict[str, float]:
    def measure(rows: np.ndarray) -> list[float]:
        return [auroc(labels[rows], probabilities[rows], 0.5)]

    draws = draw_patients(labels, groups, RESAMPLES, seed=0)
    (found,) = bootstrap(measure, len(labels), draws)
    # Without an interval every resample has this value.
    low, high = np.nan_to_num([found.low, found.high], nan=found.value)
    values = {"auroc": found.value, "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in values.items()}


def _sample_groups(groups: np.ndarray) -> np.ndarray:
    """Return the rows of random groups, about MOST_ROWS in all, or all rows if fewer."""
    if len(groups) <= MOST_ROWS:
        return np.arange(len(groups))
    numbers = np.random.default_rng(0).permutation(int(groups.max()) + 1)
    sizes = np.bincount(groups)[numbers]
    drawn = numbers[: int(np.searchsorted(np.cumsum(sizes), MOST_ROWS))]
    return np.flatnonzero(np.isin(groups, drawn))
