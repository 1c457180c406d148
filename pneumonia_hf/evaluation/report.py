"""A Report -> figures, report.md, report.json and predictions.csv in one folder."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia_hf.data.patients import describe_patients, named_by_file
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.evaluate import Report
from pneumonia_hf.evaluation.metrics import Interval
from pneumonia_hf.files import write_json
from pneumonia_hf.labels import LABELS

COLOUR = "#1f5fa8"


def check_report_folder(folder: Path, overwrite: bool) -> None:
    """Raise a UserError if writing a report into `folder` would replace another."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --output_dir takes a folder.")
    names = ["report.json", "report.md", "predictions.csv", *(f"{name}.png" for name in FIGURES)]
    held = [name for name in names if (folder / name).exists()]
    if held and not overwrite:
        raise UserError(
            f"{folder} holds {held[0]}; choose another --output_dir, or give --overwrite."
        )


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, report.md, predictions.csv and the figures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        _save(draw(report), folder / f"{name}.png")
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "patient", "label", "probability", "decision"])
        labelled = zip(
            report.files,
            report.patients,
            (LABELS[label] for label in report.labels),
            # In full: eight decimals would make one number of all high scores.
            (repr(float(p)) for p in report.probabilities),
            report.decisions,
            strict=True,
        )
        table.writerows(labelled)
        table.writerows(
            (file, "", name, repr(float(p)), decision)
            for file, name, p, decision in report.other_rows
        )
    (folder / "report.md").write_text(_to_markdown(report), encoding="utf-8")
    write_json(folder / "report.json", to_json(report))


def to_json(report: Report) -> dict[str, Any]:
    """Return the report's numbers, without the single images."""
    point = report.operating_point
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
        "threshold": point.threshold,
        "refer_low": point.low,
        "refer_high": point.high,
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
        "unreadable": list(report.unreadable),
        "notes": list(report.notes),
    }


def _to_markdown(report: Report) -> str:
    numbers = to_json(report)
    lines = [
        f"# {report.model} on {report.data} ({report.split})",
        "",
        "Research software, not a medical device.",
        "",
        f"{numbers['n']} images of "
        f"{describe_patients(numbers['patients'], numbers['patients_by_file_name'])}: "
        f"{numbers['NORMAL']} NORMAL, {numbers['PNEUMONIA']} PNEUMONIA (a prevalence of "
        f"{numbers['prevalence']:.1%}). An image is PNEUMONIA at or above a probability of "
        f"{numbers['threshold']:.4f}, the model's own threshold. Every image counts in the first "
        f"table, also the {numbers['referred']} that the model refers to a person.",
        "",
        *(f"**{note}**\n" for note in report.notes),
        "| metric | value | 95% interval |",
        "|---|---|---|",
    ]
    for name, interval in report.metrics.items():
        if math.isnan(interval.value):
            lines.append(f"| {name} | not defined | |")
        else:
            lines.append(
                f"| {name} | {interval.value:.4f} | {interval.low:.4f} to {interval.high:.4f} |"
            )
    counts = report.confusion
    lines += [
        "",
        f"The intervals are 2.5th to 97.5th percentiles over {report.resamples} bootstrap "
        "resamples of whole patients at the fixed threshold. Precision, accuracy, F1 and AUPRC "
        "move with the prevalence. `brier` is the Brier score and `ece` the expected calibration "
        f"error over 10 bins (lower is better for both), at this data's prevalence of "
        f"{numbers['prevalence']:.1%}. The model's probability is calibrated for a prevalence of "
        "50%: `brier_balanced` and `ece_balanced` are the same figures at that prevalence. "
        "Calibrated probabilities, moved to this data's prevalence, would fit as badly with "
        f"p = {report.calibration_p:.2g} (Spiegelhalter 1986).",
        "",
        "| | called NORMAL | called PNEUMONIA |",
        "|---|---|---|",
        f"| NORMAL | {counts['true_negative']} | {counts['false_positive']} |",
        f"| PNEUMONIA | {counts['false_negative']} | {counts['true_positive']} |",
        *_refer_lines(report),
        *_subgroup_lines(report),
        *_other_lines(report),
        "",
        *(f"![{name.replace('_', ' ')}]({name}.png)\n" for name in FIGURES),
        *(f"- not read: {reason}" for reason in report.unreadable),
        *([""] if report.unreadable else []),
        "Every image's probability is in `predictions.csv`. "
        f"Weights: SHA-256 `{report.weights_sha256 or 'unknown'}`.",
        "",
    ]
    return "\n".join(lines)


def _refer_lines(report: Report) -> list[str]:
    """Return the share of the images that is referred beside the error of the others."""
    one, count = report.referral, len(report.labels)
    error = "-" if math.isnan(one.error_of_referred) else f"{one.error_of_referred:.4f}"
    return [
        "",
        "| | images | share | error (95% interval) |",
        "|---|---|---|---|",
        f"| all | {count} | 100% | {_to_text(one.error)} |",
        f"| kept | {count - one.referred} | {1 - one.referred / count:.1%} | "
        f"{_to_text(one.error_of_kept)} |",
        f"| referred | {one.referred} | {one.referred / count:.1%} | {error} |",
        "",
        "An image is referred if its probability lies in the range in which resampling the "
        "validation patients moves the threshold, or if plain checks doubt that it is a chest "
        "X-ray. That is the sampling error of the threshold, and no measure of doubt about the "
        "image: referring helps only where the error of the kept is below that of all.",
    ]


def _subgroup_lines(report: Report) -> list[str]:
    if not report.subgroups:
        return []
    names = list(next((one.metrics for one in report.subgroups if one.metrics), ()))
    lines = ["", f"| within | NORMAL | PNEUMONIA | {' | '.join(names)} |"]
    lines.append("|---|---|---|" + "---|" * len(names))
    for one in report.subgroups:
        cells = [_to_text(one.metrics[name]) if one.metrics else "one class only" for name in names]
        title = f"{one.column} {one.value}"
        lines.append(f"| {title} | {one.normals} | {one.pneumonias} | {' | '.join(cells)} |")
    return lines


def _other_lines(report: Report) -> list[str]:
    if not report.others:
        return []
    return [
        "",
        "Images of neither class, which are in no figure above:",
        "",
        "| class | images | at or above the threshold | referred | median probability |",
        "|---|---|---|---|---|",
        *(
            f"| {one.name} | {one.count} | {one.called} ({one.called / one.count:.1%}) | "
            f"{one.referred} ({one.referred / one.count:.1%}) | {one.median:.4f} |"
            for one in report.others
        ),
    ]


def _to_text(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "not defined"
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def draw_confusion(report: Report):
    """Return the confusion matrix at the threshold, as a matplotlib figure."""
    figure, axes = _axes()
    c = report.confusion
    counts = np.array(
        [
            [c["true_negative"], c["false_positive"]],
            [c["false_negative"], c["true_positive"]],
        ]
    )
    shares = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(2):
        for column in range(2):
            axes.text(
                column,
                row,
                f"{counts[row, column]}\n{shares[row, column]:.1%}",
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.5 else "black",
            )
    axes.set_xticks([0, 1], LABELS)
    axes.set_yticks([0, 1], LABELS)
    axes.set_xlabel("called")
    axes.set_ylabel("label in the data")
    axes.set_title(f"At threshold {report.operating_point.threshold:.3f}")
    return figure


def draw_roc(report: Report):
    """Return the ROC curve with the operating point on it, as a matplotlib figure."""
    from sklearn.metrics import roc_curve

    figure, axes = _axes()
    false_positives, true_positives, _ = roc_curve(report.labels, report.probabilities)
    area = report.metrics["auroc"]
    axes.plot(
        false_positives,
        true_positives,
        color=COLOUR,
        label=f"AUROC {area.value:.3f} ({area.low:.3f} to {area.high:.3f})",
    )
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    axes.plot(
        1 - report.metrics["specificity"].value,
        report.metrics["sensitivity"].value,
        "o",
        color="#c0392b",
        label="at the threshold",
    )
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.set_aspect("equal")
    axes.legend(loc="lower right")
    axes.set_title("ROC curve")
    return figure


def draw_calibration(report: Report):
    """Return the reliability diagram over 10 bins, with Wilson's 95% intervals of the shares."""
    from scipy.stats import binomtest

    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
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
    axes.set_xlabel("mean probability of the bin (number: images in it)")
    axes.set_ylabel("share of pneumonias in the bin")
    axes.set_xlim(-0.03, 1.09)
    axes.set_aspect("equal")
    # Below the axes, where it covers no bin.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    prevalence = np.mean(report.labels)
    axes.set_title(
        f"Calibration at a prevalence of {prevalence:.0%}\n"
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


def _axes():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.6), layout="constrained")
    return figure, figure.subplots()


def _save(figure, path: Path) -> None:
    # No date or version inside, so that the same numbers give the same file.
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
