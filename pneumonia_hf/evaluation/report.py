"""A Report -> figures, report.md, report.json and predictions.csv in one folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.patients import describe_patients, named_by_file
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation import robustness
from pneumonia_hf.evaluation.evaluate import Report
from pneumonia_hf.evaluation.metrics import Interval
from pneumonia_hf.evaluation.perturbations import PERTURBATIONS
from pneumonia_hf.files import markdown_table, write_json
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR = "#1f5fa8"


def check_report_folder(folder: Path, overwrite: bool, files: Sequence[str] | None = None) -> None:
    """Raise a UserError if `folder` lies in a file, or one of `files` in it would be replaced.

    By default `files` are those of `write_report`.
    """
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file; --output_dir takes a folder.")
    figures = (f"{name}.png" for name in FIGURES)
    files = files or ("report.json", "report.md", "predictions.csv", *figures)
    existing = [name for name in files if (folder / name).exists()]
    if existing and not overwrite:
        raise UserError(
            f"{folder} holds {existing[0]}; choose another --output_dir, or give --overwrite."
        )


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, report.md, predictions.csv and the figures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        # Without date and version, so that the same numbers give the same file.
        draw(report).savefig(
            folder / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None}
        )
    columns = (report.files, report.patients, report.labels, report.probabilities, report.decisions)
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "patient", "label", "probability", "decision"])
        # All digits: rounded to eight decimals, the highest scores would tie.
        table.writerows(
            (name, patient, LABELS[label], repr(float(p)), decision)
            for name, patient, label, p, decision in zip(*columns, strict=True)
        )
        table.writerows(
            (name, "", folder_name, repr(float(p)), decision)
            for name, folder_name, p, decision in report.other_rows
        )
    (folder / "report.md").write_text(_to_markdown(report), encoding="utf-8")
    write_json(folder / "report.json", to_json(report))


def to_json(report: Report) -> dict[str, Any]:
    """Return the report's numbers, without the single images."""
    return {
        "data": report.data,
        "split": report.split,
        "model": report.model,
        "weights_sha256": report.weights_sha256,
        "tta": report.tta,
        "n": len(report.labels),
        "patients": len(set(report.patients)),
        "patients_by_file_name": named_by_file(report.patients),
        "prevalence": float(np.mean(report.labels)),
        "external": report.external,
        "NORMAL": int(np.sum(report.labels == 0)),
        "PNEUMONIA": int(np.sum(report.labels == 1)),
        "threshold": report.operating_point.threshold,
        "refer_low": report.operating_point.low,
        "refer_high": report.operating_point.high,
        "referred": report.referral.referred,
        "calibration_p": report.calibration_p,
        "referral": asdict(report.referral),
        "seen_in_training": report.seen_in_training,
        "seen_in_validation": report.seen_in_validation,
        "seen_in_test": report.seen_in_test,
        "confusion": report.confusion,
        "metrics": {name: asdict(interval) for name, interval in report.metrics.items()},
        "subgroups": [asdict(one) for one in report.subgroups],
        "other_classes": [asdict(one) for one in report.others],
        "robustness": robustness.to_json(report.robustness) if report.robustness else None,
        "unreadable": list(report.unreadable),
        "notes": list(report.notes),
    }


def _to_markdown(report: Report) -> str:
    numbers, counts = to_json(report), report.confusion
    patients = describe_patients(numbers["patients"], numbers["patients_by_file_name"])
    metrics = [
        [name, "not defined", ""]
        if math.isnan(one.value)
        else [name, f"{one.value:.4f}", f"{one.low:.4f} to {one.high:.4f}"]
        for name, one in report.metrics.items()
    ]
    confusion = [
        ["NORMAL", counts["true_negative"], counts["false_positive"]],
        ["PNEUMONIA", counts["false_negative"], counts["true_positive"]],
    ]
    paragraphs = [
        f"# {report.model} on {report.data} ({report.split})",
        "Research software, not a medical device.",
        f"{numbers['n']} images of {patients}: {numbers['NORMAL']} NORMAL, {numbers['PNEUMONIA']} "
        f"PNEUMONIA (prevalence {numbers['prevalence']:.1%}). An image is positive at or above a "
        f"probability of {numbers['threshold']:.4f}, the model's own threshold. The first table "
        f"counts every image, including the {numbers['referred']} that the model refers to a "
        f"person.",
        *(f"**{note}**" for note in report.notes),
        markdown_table(["metric", "value", "95% interval"], metrics),
        f"The intervals are the 2.5th to 97.5th percentiles over {report.resamples} bootstrap "
        "resamples of patients at the fixed threshold. Precision, accuracy, F1 and AUPRC depend on "
        "the prevalence. `brier` is the Brier score and `ece` the expected calibration error over "
        f"10 bins (lower is better), at this data's prevalence of {numbers['prevalence']:.1%}. The "
        "model's probability is calibrated for a prevalence of 50%: `brier_balanced` and "
        "`ece_balanced` are the same metrics at that prevalence. Spiegelhalter's test (1986) of "
        "the probabilities, moved to this data's prevalence, gives "
        f"p = {report.calibration_p:.2g}; a small p is evidence against calibration.",
        markdown_table(["label", "predicted NORMAL", "predicted PNEUMONIA"], confusion),
        *_describe_referral(report),
        *_describe_subgroups(report),
        *_describe_others(report),
        *_describe_robustness(report),
        *(f"![{name.replace('_', ' ')}]({name}.png)" for name in FIGURES),
        "\n".join(f"- not read: {reason}" for reason in report.unreadable),
        "Every image's probability is in `predictions.csv`. "
        f"Weights: SHA-256 `{report.weights_sha256 or 'unknown'}`.",
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _describe_referral(report: Report) -> list[str]:
    """Return the share of referred images beside the error on the others."""
    one, count = report.referral, len(report.labels)
    error = "-" if math.isnan(one.error_of_referred) else f"{one.error_of_referred:.4f}"
    kept, referred = count - one.referred, one.referred
    rows = [
        ["all", count, "100%", _to_text(one.error)],
        ["kept", kept, f"{1 - referred / count:.1%}", _to_text(one.error_of_kept)],
        ["referred", referred, f"{referred / count:.1%}", error],
    ]
    return [
        markdown_table(["", "images", "share", "error (95% interval)"], rows),
        "An image is referred if its probability lies in the range in which resampling the "
        "validation patients moves the threshold, or if the input checks doubt that it is a chest "
        "X-ray. That range is the sampling error of the threshold, not the uncertainty of the "
        "image: referral helps only if the error on the kept images is below that on all.",
    ]


def _describe_subgroups(report: Report) -> list[str]:
    if not report.subgroups:
        return []
    names = list(next((one.metrics for one in report.subgroups if one.metrics), ()))
    rows = [
        [f"{one.column} {one.value}", one.normals, one.pneumonias]
        + [_to_text(one.metrics[name]) if one.metrics else "one class only" for name in names]
        for one in report.subgroups
    ]
    return [markdown_table(["subgroup", "NORMAL", "PNEUMONIA", *names], rows)]


def _describe_others(report: Report) -> list[str]:
    if not report.others:
        return []
    header = ["class", "images", "at or above the threshold", "referred", "median probability"]
    rows = [
        [
            one.name,
            one.count,
            f"{one.called} ({one.called / one.count:.1%})",
            f"{one.referred} ({one.referred / one.count:.1%})",
            f"{one.median:.4f}",
        ]
        for one in report.others
    ]
    return ["Images of neither class, which are in no metric above:", markdown_table(header, rows)]


def _describe_robustness(report: Report) -> list[str]:
    found = report.robustness
    if found is None:
        return []
    rows = [
        [
            one.name.replace("_", " "),
            f"{one.level:g} {PERTURBATIONS[one.name].unit}" if one.name in PERTURBATIONS else "",
            *(_to_text(interval) for interval in (one.auroc, one.sensitivity, one.specificity)),
            f"{one.flipped:.1%}",
        ]
        for one in found.results
    ]
    worst = found.worst
    return [
        "## Robustness",
        f"**Shortcut gap {_to_text(found.shortcut_gap)}; worst case AUROC "
        f"{worst.auroc.value:.4f} ({worst.name.replace('_', ' ')} {worst.level:g}).** The copies "
        f"of {found.images} images have the same lungs, but another frame, other markers, another "
        f"look or a lower quality: a model that decides by the lungs keeps its results. The "
        f"shortcut gap is the AUROC on the plain images less that on copies whose outer 20% of "
        f"each side are those of an image of the other class. Flipped is the share of the images "
        f"whose side of the threshold changes.",
        markdown_table(["copies", "level", "AUROC", "sensitivity", "specificity", "flipped"], rows),
    ]


def _to_text(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "not defined"
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


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
    """Return the ROC curve with the operating point on it."""
    from sklearn.metrics import roc_curve

    figure, axes = _make_axes()
    false_positives, true_positives, _ = roc_curve(report.labels, report.probabilities)
    area = report.metrics["auroc"]
    label = f"AUROC {area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
    axes.plot(false_positives, true_positives, color=COLOUR, label=label)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    point = 1 - report.metrics["specificity"].value, report.metrics["sensitivity"].value
    axes.plot(*point, "o", color="#c0392b", label="at the threshold")
    axes.legend(loc="lower right")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", title="ROC curve")
    return figure


def draw_calibration(report: Report) -> Figure:
    """Return the reliability diagram over 10 bins, with Wilson's 95% intervals of the shares."""
    from scipy.stats import binomtest

    figure, axes = _make_axes()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect calibration")
    bins = np.minimum((report.probabilities * 10).astype(int), 9)
    for number in np.unique(bins):
        ill = report.labels[bins == number] == 1
        mean, share = report.probabilities[bins == number].mean(), ill.mean()
        interval = binomtest(int(ill.sum()), len(ill)).proportion_ci(method="wilson")
        axes.plot([mean, mean], [interval.low, interval.high], color=COLOUR, linewidth=1)
        axes.plot(mean, share, "o", color=COLOUR)
        axes.annotate(
            str(len(ill)), (mean, share), textcoords="offset points", xytext=(5, 3), fontsize=8
        )
    axes.plot([], [], "o-", color=COLOUR, label="this model, with 95% interval")
    axes.set(
        xlabel="mean probability of the bin (number: images in it)",
        ylabel="share of pneumonias in the bin",
        xlim=(-0.03, 1.09),
        aspect="equal",
    )
    # Below the axes, where it covers no bin.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    axes.set_title(
        f"Calibration at a prevalence of {np.mean(report.labels):.0%}\n"
        f"expected error {report.metrics['ece'].value:.3f}, "
        f"{report.metrics['ece_balanced'].value:.3f} at 50%",
        fontsize=11,
    )
    return figure


FIGURES = {
    "confusion_matrix": draw_confusion,
    "roc_curve": draw_roc,
    "calibration": draw_calibration,
}


def _make_axes() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.6), layout="constrained")
    return figure, figure.subplots()
