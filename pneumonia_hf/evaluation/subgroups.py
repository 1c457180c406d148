"""Scores by row, by subgroup of metadata, and of images of other classes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.ages import to_number
from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.table import NO_METADATA
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.scores import Scores, explain_left_out
from pneumonia_hf.inference.predictor import Prediction, Predictor
from pneumonia_hf.labels import LABELS
from pneumonia_hf.statistics.comparison import bootstrap_p, fisher_p, permutation_p
from pneumonia_hf.statistics.intervals import (
    Interval,
    bootstrap,
    draw_patients,
    percentile_interval,
)
from pneumonia_hf.statistics.metrics import (
    METRICS,
    auroc,
    auroc_within,
    bootstrap_intervals,
    has_few_patients,
    metric_interval,
)

if TYPE_CHECKING:
    from datasets import Dataset

SUBGROUP_METRICS = ("auroc", "sensitivity", "specificity")
NOT_GIVEN = "not given"
AGES = (6, 18, 40, 60, 80)  # first years of all age bands but the youngest
MOST_VALUES = 12  # of a column of text: more are names or remarks
FEWEST = 5  # images of a class, below which a group has no metric
SIGNIFICANT = 0.05  # adjusted p-value below which a gap is flagged
FILE_KIND = re.compile(r"(?:^|[/:_-])(bacteria|virus)[_-]", re.IGNORECASE)


@dataclass(frozen=True)
class Gap:
    """How far a metric of a group is from that of all other images."""

    difference: Interval
    # Two-sided, that there is none: the larger p-value of an exact test (Fisher; of the AUROC, a
    # permutation test) and of the bootstrap over patients; adjusted for the number of gaps.
    p: float

    @property
    def flagged(self) -> bool:
        """Whether the gap is larger than chance and the number of comparisons explain."""
        return self.p < SIGNIFICANT


@dataclass(frozen=True)
class Subgroup:
    """The metrics on the images with one value of a metadata column."""

    column: str
    value: str
    normals: int
    pneumonias: int
    metrics: dict[str, Interval]  # of SUBGROUP_METRICS, those with FEWEST images of each class
    # Of the AUROC of a group with one class: all images of the other class are its counterpart.
    against_all: bool
    # By metric; none where all other images are too few, or are the other group of two, which has
    # the same gap with the other sign.
    gaps: dict[str, Gap]


@dataclass(frozen=True)
class Stratified:
    """The AUROC of all pairs, beside that of pairs within one value of a column."""

    column: str
    pooled: Interval
    within: Interval
    difference: Interval  # of the first less the second: what the mix of groups contributes
    alone: Interval  # of a score that knows only the group: its share of pneumonias in this data


@dataclass(frozen=True)
class Others:
    """The predictions for images of neither class, which are in no metric."""

    name: str  # the folder, or the folder and a value of a column
    count: int
    called: int  # at or above the threshold
    referred: int
    median: float  # probability
    auroc: Interval  # of the pneumonias of the same group against them


@dataclass(frozen=True)
class ScoredOthers:
    """The images of neither class: in groups, one by one, and those that cannot be read."""

    groups: tuple[Others, ...] = ()
    rows: tuple[tuple[OtherImage, Prediction], ...] = ()
    unreadable: tuple[str, ...] = ()  # the reason of each


def to_groups(name: str, values: Sequence[Any]) -> list[str | None] | None:
    """Return the group of each image by a metadata column; None if the column makes no groups.

    Ages, in years or with a unit as in DICOM (006M), become bands, and other numbers of many
    values quarters. An empty cell is "not given".
    """
    cells = [None if one is None or one != one or one == "" else one for one in values]
    numbers = np.array([_to_number(one) for one in cells])
    given = np.array([one is not None for one in cells])
    if given.any() and np.isfinite(numbers[given]).all():
        is_age = name.lower() == "age"
        if is_age or len(np.unique(numbers[given])) > MOST_VALUES:
            quarters = np.unique(np.quantile(numbers[given], [0.25, 0.5, 0.75]))
            edges = AGES if is_age else quarters
            return [NOT_GIVEN if one is None else _to_band(number, edges)
                    for one, number in zip(cells, numbers, strict=True)]  # fmt: skip
    groups = [NOT_GIVEN if one is None else str(one) for one in cells]
    return groups if 2 <= len(set(groups)) <= MOST_VALUES else None


def _to_number(cell: Any) -> float:
    try:
        return to_number(cell)
    except ValueError:
        return math.nan


def _to_band(number: float, edges: Sequence[float]) -> str:
    place = int(np.searchsorted(edges, number, side="right"))
    if place == 0:
        return f"below {edges[0]:g}"
    if place == len(edges):
        return f"{edges[-1]:g} or more"
    return f"{edges[place - 1]:g} to below {edges[place]:g}"


def list_groups(data: Dataset, names: Sequence[str]) -> dict[str, list[str | None]]:
    """Return the group of each image, by column: of `names`, or else of every usable column.

    Beside metadata that is what the file names say: bacteria or virus. None is no group. Columns
    whose every value is of one class are the labels themselves, and are left out unless named.

    Raises:
        UserError: an unknown column, or one that makes no groups.
    """
    known = [name for name in data.column_names if name not in NO_METADATA]
    if missing := [name for name in names if name not in known]:
        raise UserError(
            f"The data has no column {missing[0]!r} for --subgroups; it has {', '.join(known)}."
        )
    found, labels = {}, data["label"][:]
    for name in names or known:
        groups = to_groups(name, data[name][:])
        if groups is not None and (names or not _is_label(groups, labels)):
            found[name] = groups
        elif groups is None and names:
            raise UserError(
                f"The column {name!r} makes no groups: it has one value only, or more than "
                f"{MOST_VALUES} texts; leave it out of --subgroups."
            )
    kinds = [match and match[1].lower() for match in map(FILE_KIND.search, data["file"][:])]
    if not names and any(kinds):
        found["file name"] = kinds
    return found


def _is_label(groups: Sequence[str | None], labels: Sequence[int]) -> bool:
    """Return whether every group has one class."""
    return len(set(zip(groups, labels, strict=True))) == len(set(groups))


def sort_key(group: str) -> tuple:
    """Return the place of a group: bands by their numbers, others by their name."""
    number = re.match(r"(below )?(-?[\d.]+)", group)
    return (0, float(number[2]), not number[1], group) if number else (1, 0.0, True, group)


def measure_subgroups(
    columns: Mapping[str, Sequence[str | None]],
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    patients: Sequence[str],
    resamples: Sequence[np.ndarray],
) -> tuple[tuple[Subgroup, ...], tuple[Stratified, ...]]:
    """Return the metrics of each group of each column, and the AUROC within each column.

    All groups are measured on the same `resamples`, as of `draw_patients`. The p-values of all
    gaps are adjusted together (Benjamini and Yekutieli 2001, since groups overlap).
    """
    from scipy.stats import false_discovery_control

    generator = np.random.default_rng(13)
    few = has_few_patients(labels, patients)

    def measure_both(metric: str, mask: np.ndarray) -> np.ndarray:
        """Return a metric of the images in a mask, and of all others: [2, 1 + resamples]."""
        function, every = METRICS[metric].function, (np.arange(len(labels)), *resamples)
        parts = ((rows[inside], rows[~inside]) for rows in every for inside in [mask[rows]])
        return np.array(
            [[function(labels[of], probabilities[of], threshold) for of in pair] for pair in parts]
        ).T

    groups, stratified, gaps = [], [], []
    for column, of_image in columns.items():
        values = np.array([one if one is not None else "" for one in of_image])
        names = sorted(set(values[values != ""].tolist()), key=sort_key)
        for number, value in enumerate(names):
            inside = values == value
            counts = np.bincount(labels[inside], minlength=2)
            has_both = bool(counts.all())
            # An AUROC needs both classes.
            wanted = inside if has_both else inside | (labels != labels[inside][0])
            metrics = {}
            for metric in SUBGROUP_METRICS:
                mask = wanted if metric == "auroc" else inside
                if not _has_enough(metric, labels, inside, has_both):
                    continue
                own, rest = measure_both(metric, mask)
                images = labels[mask], probabilities[mask], threshold
                metrics[metric] = metric_interval(metric, *images, own[1:])
                # The AUROC of a group with one class shares its counterpart with the others'.
                alone = metric != "auroc" or has_both
                if number + 1 == len(names) == 2 or not alone or few:
                    continue
                if _has_enough(metric, labels, ~mask, True):
                    difference = own - rest
                    p = (
                        permutation_p(labels, probabilities, mask, difference[0], generator)
                        if metric == "auroc"
                        else fisher_p(metric, labels, probabilities, threshold, mask)
                    )
                    interval = percentile_interval(difference[0], difference[1:])
                    gaps.append((len(groups), metric, interval, max(p, bootstrap_p(difference))))
            groups.append(
                Subgroup(column, str(value), *map(int, counts), metrics, not has_both, {})
            )
        if all(one is not None for one in of_image):
            stratified.append(_stratify(column, values, labels, probabilities, resamples))
    adjusted = false_discovery_control([p for *_, p in gaps], method="by") if gaps else ()
    for (number, metric, interval, _), p in zip(gaps, adjusted, strict=True):
        groups[number].gaps[metric] = Gap(interval, float(p))
    return tuple(groups), tuple(stratified)


def _stratify(
    column: str,
    values: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    resamples: Sequence[np.ndarray],
) -> Stratified:
    shares = {name: np.mean(labels[values == name]) for name in np.unique(values).tolist()}
    known = np.array([shares[one] for one in values.tolist()])

    def areas(rows: np.ndarray) -> tuple[float, float, float, float]:
        images = labels[rows], probabilities[rows]
        pooled, within = auroc(*images, 0), auroc_within(*images, values[rows])
        return pooled, within, pooled - within, auroc(labels[rows], known[rows], 0)

    return Stratified(column, *bootstrap(areas, len(labels), resamples))


def _has_enough(metric: str, labels: np.ndarray, mask: np.ndarray, both: bool) -> bool:
    """Return whether a group has FEWEST images of each class that a metric needs.

    An AUROC needs those of both classes, or without `both`, of the only class that there is.
    """
    counts = np.bincount(labels[mask], minlength=2)
    if metric == "auroc":
        return bool((counts[counts > 0] >= FEWEST).all() and (counts.all() or not both))
    return bool(counts[1 if metric == "sensitivity" else 0] >= FEWEST)


def score_other_classes(
    predictor: Predictor,
    others: Sequence[OtherImage],
    columns: Mapping[str, Sequence[str | None]],
    main: Scores,
    resamples: int,
) -> ScoredOthers:
    """Score images of neither class, in groups by their folder and by metadata columns.

    `columns` are the groups of the images of both classes, whose scores are `main`: the pneumonias
    of a group are compared with the other images of it.
    """
    predictions = list(predictor.predict_files([one.path for one in others], refuse=False))
    faults = list(map(explain_left_out, predictions, (one.file for one in others)))
    every = zip(others, predictions, faults, strict=True)
    scored = [(image, found) for image, found, fault in every if not fault]
    ill = main.labels == 1
    # Of each group its members, and the pneumonias that belong to it.
    groups = [
        (name, [one for one in scored if one[0].folder == name], ill)
        for name in dict.fromkeys(image.folder for image, _ in scored)
    ]
    for column, of_main in columns.items():
        of_image = to_groups(column, [image.cells.get(column) for image, _ in scored]) or []
        members: dict[tuple[str, str], list] = {}
        for one, value in zip(scored, of_image, strict=False):
            members.setdefault((one[0].folder, value), []).append(one)
        for folder, value in sorted(members):
            own = ill & np.array([one == value for one in of_main])
            groups.append((f"{folder}, {column} {value}", members[folder, value], own))
    summary = tuple(_describe_others(*group, main, resamples) for group in groups)
    return ScoredOthers(summary, tuple(scored), tuple(filter(None, faults)))


def _describe_others(
    name: str,
    members: Sequence[tuple[OtherImage, Prediction]],
    ill: np.ndarray,
    main: Scores,
    resamples: int,
) -> Others:
    """Describe a group of images of neither class; `ill` are its pneumonias in `main`."""
    found = [prediction for _, prediction in members]
    scores = np.array([*(one.probability for one in found), *main.probabilities[ill]])
    area = Interval(math.nan)
    if min(len(found), np.sum(ill)) >= FEWEST:
        # An image without a patient counts as one of its own.
        of_others = [image.cells.get("patient_id") or image.file for image, _ in members]
        patients = np.array([*of_others, *np.asarray(main.patients)[ill]])
        labels = np.arange(len(scores)) >= len(found)
        draws = draw_patients(labels, patients, resamples)
        area = bootstrap_intervals(labels, scores, 0, patients, draws, ("auroc",))["auroc"]
    return Others(
        name,
        len(found),
        sum(one.label == LABELS[1] for one in found),
        sum(one.decision == "REFER" for one in found),
        float(np.median([one.probability for one in found])),
        area,
    )
