"""Section: the metrics by group of metadata, and what the mix of groups contributes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.subgroups import SUBGROUP_METRICS, Subgroup, measure_subgroups
from pneumonia_hf.reporting.drawing import draw_forest
from pneumonia_hf.reporting.numbers import to_text
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.metrics import METRICS

TITLE = "Subgroups"


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the metrics by group, the gaps that chance does not explain, and pooling."""
    groups, stratified = measure_subgroups(
        evaluation.groups,
        evaluation.labels,
        evaluation.probabilities,
        evaluation.threshold,
        evaluation.scores.patients,
        evaluation.resamples,
    )
    numbers = {
        "subgroups": [
            asdict(one)
            | {"gaps": {k: asdict(gap) | {"flagged": gap.flagged} for k, gap in one.gaps.items()}}
            for one in groups
        ],
        "stratified": [asdict(one) for one in stratified],
    }
    if not groups:
        return Section(TITLE, (), numbers)
    flagged = [
        f"- {one.column} {one.value}: {name} differs from the other images by "
        f"{to_text(gap.difference)}, p = {gap.p:.2g}"
        for one in groups
        for name, gap in one.gaps.items()
        if gap.flagged
    ]
    rows = [
        [f"{one.column} {one.value}", one.normals, one.pneumonias,
         *(_describe(one, name) for name in SUBGROUP_METRICS)]
        for one in groups
    ]  # fmt: skip
    counts = np.bincount(evaluation.labels, minlength=2)
    for one in stratified:
        name = "site" if one.column == "source" else one.column
        rows.append([f"the {name} alone", *counts, to_text(one.alone), "", ""])
    header = ["group", "NORMAL", "PNEUMONIA", *(METRICS[name].title for name in SUBGROUP_METRICS)]
    body: list[str | Table | Figure] = [Table(header, rows)]
    if stratified:
        body.append(
            "The last rows are scores that know only the group of an image, its share of "
            "pneumonias in this data: what the model must exceed."
        )
    if any(one.against_all and "auroc" in one.metrics for one in groups):
        body.append("* against all images of the other class, since the group has one class only.")
    if flagged:
        body.append(
            "Differences from all other images that chance and the number of comparisons do not "
            "explain (marked (!) above):"
        )
        body.append("\n".join(flagged))
    else:
        body.append(
            "No difference between a group and the other images is larger than chance and the "
            "number of comparisons explain."
        )
    body.append(
        "A difference is marked if its adjusted p-value (Benjamini and Yekutieli 2001) is below "
        "0.05. The p-value is the larger of two: of the bootstrap over patients, and of Fisher's "
        "exact test (for the AUROC, of permuted groups), since the bootstrap knows no error of a "
        "group that has none. Of a column with two groups only the first is compared."
    )
    pooled = [
        [one.column, to_text(one.pooled), to_text(one.within), to_text(one.difference)]
        for one in stratified
        if not math.isnan(one.within.value)
    ]
    if pooled:
        body += [
            "The AUROC over all pairs of images, beside that over pairs within one group. The "
            "difference is what the mix of groups contributes: above 0, the first is too high; "
            "below 0, it hides what the model can do.",
            Table(["column", "all pairs", "pairs within a group", "difference"], pooled),
        ]
    areas = [("all images", evaluation.metrics["auroc"], False)]
    for one in groups:
        if "auroc" in one.metrics:
            name = f"{one.column}: {one.value} ({one.normals} + {one.pneumonias})"
            is_flagged = any(gap.flagged for gap in one.gaps.values())
            areas.append((name, one.metrics["auroc"], is_flagged))
    if len(areas) > 1:
        title = "AUROC with 95% interval (NORMAL + PNEUMONIA)"
        body.append(Figure("subgroups", lambda: draw_forest(areas, title), is_wide=True))
    return Section(TITLE, tuple(body), numbers)


def _describe(group: Subgroup, metric: str) -> str:
    """Return a metric of a group, with its marks."""
    if metric not in group.metrics:
        return "too few"
    gap = group.gaps.get(metric)
    text = to_text(group.metrics[metric]) + (" (!)" if gap is not None and gap.flagged else "")
    return text + ("*" if group.against_all and metric == "auroc" else "")
