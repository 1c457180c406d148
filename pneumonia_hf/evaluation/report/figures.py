"""FIGURES: the figures of a report, each a function of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.evaluation.evaluate import Report
from pneumonia_hf.evaluation.perturbations import PERTURBATIONS
from pneumonia_hf.evaluation.report.interval_text import to_label
from pneumonia_hf.labels import LABELS
from pneumonia_hf.statistics.intervals import draw_patients

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR, OTHER_COLOUR, MARK = "#1f5fa8", "#767676", "#c0392b"
BAND_RESAMPLES = 200
GRID = np.linspace(0, 1, 201)


def draw_confusion(report: Report) -> Figure:
    """Return the confusion matrix at the threshold."""
    figure, axes = _make_axes()
    c = report.confusion
    counts = np.array(
        [
            [c["true_negative"], c["false_positive"]],
            [c["false_negative"], c["true_positive"]],
        ]
    )
    shares = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{counts[row, column]}\n{share:.1%}"
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_xticks([0, 1], LABELS)
    axes.set_yticks([0, 1], LABELS)
    axes.set(
        xlabel="predicted label",
        ylabel="label in the data",
        title=f"At threshold {report.operating_point.threshold:.3f}",
    )
    return figure


def draw_roc(report: Report) -> Figure:
    """Return the ROC curve with a 95% band over patients, and the operating point on it."""
    from sklearn.metrics import roc_curve

    def at_grid(rows: np.ndarray) -> np.ndarray:
        curve = roc_curve(report.labels[rows], report.probabilities[rows])
        return np.interp(GRID, curve[0], curve[1])

    figure, axes = _make_axes()
    low, high = _band(report, at_grid)
    axes.fill_between(GRID, low, high, color=COLOUR, alpha=0.18, linewidth=0, label="95% band")
    false_positives, true_positives, _ = roc_curve(report.labels, report.probabilities)
    area = report.metrics["auroc"]
    label = f"AUROC {to_label(area)}"
    axes.plot(false_positives, true_positives, color=COLOUR, label=label)
    axes.plot([0, 1], [0, 1], color=OTHER_COLOUR, linestyle=":", label="chance")
    point = 1 - report.metrics["specificity"].value, report.metrics["sensitivity"].value
    axes.plot(*point, "o", color=MARK, label="at the threshold")
    axes.legend(loc="lower right", fontsize=9)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", title="ROC curve")
    return figure


def draw_precision_recall(report: Report) -> Figure:
    """Return the precision-recall curve with a 95% band over patients."""
    from sklearn.metrics import precision_recall_curve

    def at_grid(rows: np.ndarray) -> np.ndarray:
        precision, recall, _ = precision_recall_curve(
            report.labels[rows], report.probabilities[rows]
        )
        return np.interp(GRID, recall[::-1], precision[::-1])

    figure, axes = _make_axes()
    low, high = _band(report, at_grid)
    axes.fill_between(GRID, low, high, color=COLOUR, alpha=0.18, linewidth=0, label="95% band")
    area = report.metrics["auprc"]
    label = f"AUPRC {to_label(area)}"
    precision, recall, _ = precision_recall_curve(report.labels, report.probabilities)
    axes.plot(recall, precision, color=COLOUR, label=label)
    prevalence = float(np.mean(report.labels))
    axes.axhline(prevalence, color=OTHER_COLOUR, linestyle=":", label="chance (prevalence)")
    point = report.metrics["sensitivity"].value, report.metrics["precision"].value
    axes.plot(*point, "o", color=MARK, label="at the threshold")
    axes.legend(loc="lower left", fontsize=9)
    axes.set(
        xlabel="sensitivity (recall)",
        ylabel="PPV (precision)",
        title=f"Precision and recall at a prevalence of {prevalence:.0%}",
        ylim=(-0.03, 1.03),
    )
    return figure


def draw_calibration(report: Report) -> Figure:
    """Return the reliability diagram over bins of equal size, with Wilson's 95% intervals."""
    figure, axes = _make_axes()
    axes.plot([0, 1], [0, 1], color=OTHER_COLOUR, linestyle=":", label="perfect calibration")
    for one in report.calibration.bins:
        axes.plot([one.mean_probability] * 2, [one.low, one.high], color=COLOUR, linewidth=1)
        axes.plot(one.mean_probability, one.share, "o", color=COLOUR, markersize=5)
    axes.plot([], [], "o-", color=COLOUR, label="tenths of the images, with 95% interval")
    axes.set(
        xlabel="mean probability of the bin, moved to the prevalence",
        ylabel="share of pneumonias in the bin",
        xlim=(-0.03, 1.03),
        aspect="equal",
    )
    # Below the axes, where it covers no bin.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=9)
    axes.set_title(
        f"Calibration at a prevalence of {np.mean(report.labels):.0%}\n"
        f"expected error {report.calibration.losses[1].ece:.3f}, "
        f"{report.metrics['ece_balanced'].value:.3f} at 50%",
        fontsize=11,
    )
    return figure


def draw_decision_curve(report: Report) -> Figure:
    """Return the net benefit by threshold probability, beside acting always and never."""
    figure, axes = _make_axes()
    curve, prevalence = report.decision_curve, float(np.mean(report.labels))
    axes.plot(curve.risks, curve.model, color=COLOUR, label="by the model")
    axes.plot(curve.risks, curve.everyone, color=OTHER_COLOUR, label="everyone positive")
    axes.axhline(0, color="black", linewidth=0.8, label="everyone negative")
    axes.set(
        xlabel="threshold probability",
        ylabel="net benefit per image",
        ylim=(-0.05 * max(prevalence, 0.2), prevalence * 1.05),
        title=f"Decision curve at a prevalence of {prevalence:.0%}",
    )
    axes.legend(loc="lower left", fontsize=9)
    return figure


def draw_risk_coverage(report: Report) -> Figure:
    """Return the error of the surest images by their share, and the point of REFER."""
    figure, axes = _make_axes()
    curve = report.risk_coverage
    label = f"surest images first (AURC {curve.aurc.value:.4f})"
    axes.plot(curve.coverage, curve.risk, color=COLOUR, label=label)
    kept = 1 - report.referral.referred / len(report.labels)
    axes.plot(
        kept, report.referral.error_of_kept.value, "o", color=MARK, label="without those referred"
    )
    axes.set(
        xlabel="share of the images that get an answer",
        ylabel="share of wrong answers among them",
        title="Risk and coverage",
        ylim=(0, max(0.02, 1.15 * float(np.nanmax(curve.risk)))),
    )
    axes.legend(loc="upper left", fontsize=9)
    return figure


def draw_subgroups(report: Report) -> Figure | None:
    """Return the AUROC of each subgroup with its interval; None without subgroups."""
    groups = [one for one in report.subgroups if "auroc" in one.metrics]
    if not groups:
        return None
    rows = [("all images", report.metrics["auroc"], False)]
    rows += [
        (
            f"{one.column}: {one.value} ({one.normals} + {one.pneumonias})",
            one.metrics["auroc"],
            any(gap.flagged for gap in one.gaps.values()),
        )
        for one in groups
    ]
    return _draw_forest(rows, "AUROC with 95% interval (NORMAL + PNEUMONIA)")


def draw_sites(report: Report) -> Figure | None:
    """Return the AUROC of each site; None if there is only this data."""
    if not report.sites:
        return None
    rows = [(report.data, report.metrics["auroc"], False)]
    rows += [(one.name, one.metrics["auroc"], False) for one in report.sites]
    return _draw_forest(rows, "AUROC with 95% interval")


def draw_robustness(report: Report) -> Figure | None:
    """Return the AUROC of each kind of copies by severity; None if it was not measured."""
    if report.robustness is None:
        return None
    from matplotlib.figure import Figure

    plain, *copies = report.robustness.results
    columns = 5
    rows = -(-len(PERTURBATIONS) // columns)
    figure = Figure(figsize=(2.3 * columns, 2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    lowest = min(one.auroc.low for one in (plain, *copies))
    for axes, name in zip(grid.flat, PERTURBATIONS, strict=False):
        levels = [one for one in copies if one.name == name]
        areas = [one.auroc for one in (plain, *levels)]
        places = range(len(areas))
        axes.fill_between(
            places, [x.low for x in areas], [x.high for x in areas], color=COLOUR, alpha=0.18,
            linewidth=0,
        )  # fmt: skip
        axes.plot(places, [x.value for x in areas], "o-", color=COLOUR, markersize=4)
        axes.set_xticks(places, ["plain", *(f"{one.level:g}" for one in levels)], fontsize=8)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_ylim(max(0, lowest - 0.02), 1.005)
        axes.grid(axis="y", alpha=0.3)
    for axes in grid.flat[len(PERTURBATIONS) :]:
        axes.axis("off")
    figure.supylabel("AUROC with 95% interval", fontsize=10)
    return figure


FIGURES: dict[str, Callable[[Report], Figure | None]] = {
    "confusion_matrix": draw_confusion,
    "roc_curve": draw_roc,
    "precision_recall": draw_precision_recall,
    "decision_curve": draw_decision_curve,
    "calibration": draw_calibration,
    "risk_coverage": draw_risk_coverage,
    "subgroups": draw_subgroups,
    "robustness": draw_robustness,
    "sites": draw_sites,
}


def save_figures(report: Report, folder: Path) -> Iterator[str]:
    """Write the figures that the report has as PNG and SVG, and yield their names."""
    import matplotlib

    # Without dates, versions and random ids, so that the same numbers give the same files.
    with matplotlib.rc_context({"svg.hashsalt": "pneumonia-hf", "svg.fonttype": "none"}):
        for name, draw in FIGURES.items():
            figure = draw(report)
            if figure is None:
                continue
            figure.savefig(
                folder / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None}
            )
            figure.savefig(
                folder / f"{name}.svg",
                bbox_inches="tight",
                metadata={"Date": None, "Creator": None},
            )
            yield name


def _draw_forest(rows: list[tuple[str, object, bool]], title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.32 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots()
    for place, (_, area, flagged) in enumerate(rows):
        colour = MARK if flagged else COLOUR
        axes.plot([area.low, area.high], [place, place], color=colour, linewidth=1.5)
        axes.plot(area.value, place, "o", color=colour, markersize=5)
    axes.axvline(rows[0][1].value, color=OTHER_COLOUR, linestyle=":")
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=9)
    axes.invert_yaxis()
    lowest = np.nanmin([end for _, area, _ in rows for end in (area.low, area.value)])
    axes.set_xlim(right=1 + 0.03 * (1 - lowest))
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _band(
    report: Report, at_grid: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    rows = draw_patients(report.labels, report.scores.patients, BAND_RESAMPLES, seed=13)
    low, high = np.percentile([at_grid(one) for one in rows], [2.5, 97.5], axis=0)
    return low, high


def _make_axes() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.6), layout="constrained")
    return figure, figure.subplots()
