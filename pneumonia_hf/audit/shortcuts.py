"""Shortcuts: how well something outside the lungs predicts the class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.audit.dataset import Finding, Xrays
from pneumonia_hf.audit.label_errors import MOST_ROWS, cross_validate, has_enough_groups
from pneumonia_hf.data.table import OWN_COLUMNS, column

if TYPE_CHECKING:
    from pneumonia_hf.data.pixel_store import XrayPixels

# Lower end of the 95% interval of the AUROC with which something beside the lungs tells the class.
SHORTCUT_LOOK, SHORTCUT_STOP = 0.6, 0.9


def check_shortcuts(xrays: Xrays) -> Finding:
    """How well the class is told by what is not in the lungs, each alone, by patient.

    The border is the outer 4% of the image: arms, neck and belly, markers, and how the X-ray was
    cut.
    """
    extras = {
        name: column(xrays.data, name).to_pandas().to_numpy()
        for name in xrays.data.column_names
        if _is_extra(xrays, name)
    }
    areas, passed_over = measure_shortcuts(xrays.images, xrays.label, xrays.related, extras)
    if not areas:
        return Finding("look", 0, "too few patients of a class to measure shortcuts.")
    strong = {name: one for name, one in areas.items() if one["low"] >= SHORTCUT_LOOK}
    # A network does not see metadata: what that tells, the image may tell, or may not.
    worst = max(one["low"] for name, one in areas.items() if not name.startswith("metadata:"))
    summary = ", ".join(
        f"{name} {one['auroc']:.3f}"
        for name, one in sorted(areas.items(), key=lambda pair: -pair[1]["auroc"])
    )
    return Finding(
        "stop" if worst >= SHORTCUT_STOP else "look" if strong else "fine",
        len(strong),
        f"AUROC by the image's {summary}.",
        tuple({"shortcut": name, **one} for name, one in strong.items()),
        more={"auroc": areas, "not_measured": passed_over},
    )


def _is_extra(xrays: Xrays, name: str) -> bool:
    """Return whether a column may be a shortcut: metadata, or the source where there are some."""
    import pyarrow.compute as pc

    if name == "source":
        return pc.count_distinct(column(xrays.data, name)).as_py() > 1
    return name not in OWN_COLUMNS


MOST_TEXTS = 20  # different ones in a column of metadata that is measured
RESAMPLES = 200


def measure_shortcuts(
    images: XrayPixels, labels: np.ndarray, groups: np.ndarray, extras: dict[str, np.ndarray]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the AUROC with which each thing beside the lungs tells the class, by patient.

    Boosted trees on that thing alone, cross-validated; the 95% interval is over patients.

    Args:
        images, labels, groups: as for `find_label_errors`.
        extras: columns of metadata, [N] each, that may tell the class too, also by being empty.
            Those with more than 20 different texts are not measured.

    Returns:
        auroc, low and high of each, nothing where a class has too few patients; and the columns
        that were not measured.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = _sample_groups(groups)
    labels, groups = labels[rows], groups[rows]
    if not has_enough_groups(labels, groups):
        return {}, list(extras)
    width = images.facts("width")[rows].astype(np.float32)
    height = images.facts("height")[rows].astype(np.float32)
    kinds = np.char.add(images.facts("format")[rows], images.facts("mode")[rows])
    things = {
        "border": images.facts("border")[rows].astype(np.float32),
        "size": np.stack([width, height], axis=1),
        "aspect_ratio": (width / height)[:, None],
        "brightness": images.facts("mean")[rows][:, None],
        "file_kind": np.unique(kinds, return_inverse=True)[1].astype(np.float32)[:, None],
    }
    passed_over = []
    for name, cells in extras.items():
        values = _as_numbers(cells[rows])
        if values is None:
            passed_over.append(name)
        else:
            things["source" if name == "source" else f"metadata:{name}"] = values
    areas = {}
    for name, values in things.items():
        if len(np.unique(values, axis=0)) < 2:
            areas[name] = {"auroc": 0.5, "low": 0.5, "high": 0.5}  # the same for all tells nothing
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
    return areas, passed_over


def _as_numbers(values: np.ndarray) -> np.ndarray | None:
    """Return a metadata column as numbers, [N, 1], NaN where it is empty; None for free text."""
    filled = np.array([value is not None and value == value for value in values], dtype=bool)
    numbers = np.full(len(values), np.nan)
    try:
        numbers[filled] = [float(value) for value in values[filled]]
    except ValueError:
        names, codes = np.unique([str(value) for value in values[filled]], return_inverse=True)
        if len(names) > MOST_TEXTS:
            return None  # names of patients, dates, remarks
        numbers[filled] = codes
    return numbers[:, None]


def _area_over_patients(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray
) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    of_group = np.split(order, starts[1:])
    areas = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(of_group), len(of_group))
        rows = np.concatenate([of_group[one] for one in drawn])
        if 0 < labels[rows].sum() < len(rows):
            areas.append(roc_auc_score(labels[rows], probabilities[rows]))
    low, high = np.percentile(areas, [2.5, 97.5])
    area = roc_auc_score(labels, probabilities)
    return {
        "auroc": round(float(area), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def _sample_groups(groups: np.ndarray) -> np.ndarray:
    """Return the rows of as many groups as make about MOST_ROWS rows, all if they are fewer."""
    if len(groups) <= MOST_ROWS:
        return np.arange(len(groups))
    numbers = np.random.default_rng(0).permutation(int(groups.max()) + 1)
    sizes = np.bincount(groups)[numbers]
    drawn = numbers[: int(np.searchsorted(np.cumsum(sizes), MOST_ROWS))]
    return np.flatnonzero(np.isin(groups, drawn))
