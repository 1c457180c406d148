"""Section: the metrics at the model's threshold, the confusion matrix and the curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.labels import LABELS
from pneumonia_hf.reporting.drawing import COLOUR, MARK, OTHER_COLOUR, make_axes
from pneumonia_hf.reporting.numbers import to_text
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.metrics import FEWEST_PATIENTS, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

BAND_RESAMPLES = 200
GRID = np.linspace(0, 1, 201)


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return all metrics with their intervals, and the confusion matrix."""
    from sklearn.metrics import classification_report

    counts = evaluation.confusion
    by_class = classification_report(
        evaluation.labels, evaluation.positive.astype(int), target_names=LABELS, digits=3,
        zero_division=np.nan,
    )  # fmt: skip
    body = (
        Table(
            ["metric", "value (95% interval)"],
            [[METRICS[name].title, to_text(one)] for name, one in evaluation.metrics.items()],
        ),
        f"The intervals are the 2.5th to 97.5th percentiles over {evaluation.config.resamples} "
        f"bootstrap resamples of patients at the fixed threshold. Where no resample changes a "
        f"proportion, its interval is the exact binomial one (Clopper and Pearson 1934), and other "
        f"metrics have none; nor has an area with fewer than {FEWEST_PATIENTS} patients of a "
        f"class. PPV, NPV, accuracy, F1, kappa, the Matthews correlation, AUPRC and the losses "
        f"depend on the prevalence, here {evaluation.prevalence:.1%}.",
        Table(
            ["label", "predicted NORMAL", "predicted PNEUMONIA"],
            [
                ["NORMAL", counts["true_negative"], counts["false_positive"]],
                ["PNEUMONIA", counts["false_negative"], counts["true_positive"]],
            ],
        ),
        "```text\n" + by_class.rstrip().strip("\n") + "\n```",
        Figure("confusion_matrix", lambda: draw_confusion(evaluation)),
        Figure("roc_curve", lambda: draw_roc(evaluation)),
        Figure("precision_recall", lambda: draw_precision_recall(evaluation)),
    )
    metrics = {name: asdict(interval) for name, interval in evaluation.metrics.items()}
    return Section("Discrimination", body, {"confusion": counts, "metrics": metrics})


def draw_confusion(evaluation: Evaluation) -> Drawing:
    """Return the confusion matrix at the threshold."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    figure, axes = make_axes()
    shares = confusion_matrix(evaluation.labels, evaluation.positive, normalize="true")
    counts = confusion_matrix(evaluation.labels, evaluation.positive)
    shown = ConfusionMatrixDisplay(shares, display_labels=LABELS)
    shown.plot(cmap="Blues", ax=axes, colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    for place, text in np.ndenumerate(shown.text_):
        text.set_text(f"{counts[place]}\n{shares[place]:.1%}")
    axes.set(
        xlabel="predicted label",
        ylabel="label in the data",
        title=f"At threshold {evaluation.threshold:.3f}",
    )
    return figure


def draw_roc(evaluation: Evaluation) -> Drawing:
    """Return the ROC curve with a 95% band over patients, and the operating point on it."""
    from sklearn.metrics import roc_curve

    metrics = evaluation.metrics
    point = 1 - metrics["specificity"].value, metrics["sensitivity"].value
    figure, axes = _draw_curve(
        evaluation, lambda *images: roc_curve(*images)[:2], f"AUROC {to_text(metrics['auroc'])}",
        point,
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=OTHER_COLOUR, linestyle=":", label="chance")
    axes.legend(loc="lower right", fontsize=9)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", title="ROC curve")
    return figure


def draw_precision_recall(evaluation: Evaluation) -> Drawing:
    """Return the precision-recall curve with a 95% band over patients."""
    from sklearn.metrics import precision_recall_curve

    def trace(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = precision_recall_curve(labels, probabilities)
        return recall[::-1], precision[::-1]

    metrics, prevalence = evaluation.metrics, evaluation.prevalence
    point = metrics["sensitivity"].value, metrics["precision"].value
    figure, axes = _draw_curve(evaluation, trace, f"AUPRC {to_text(metrics['auprc'])}", point)
    axes.axhline(prevalence, color=OTHER_COLOUR, linestyle=":", label="chance (prevalence)")
    axes.legend(loc="lower left", fontsize=9)
    axes.set(
        xlabel="sensitivity (recall)",
        ylabel="PPV (precision)",
        title=f"Precision and recall at a prevalence of {prevalence:.0%}",
        ylim=(-0.03, 1.03),
    )
    return figure


def _draw_curve(
    evaluation: Evaluation,
    trace: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    label: str,
    point: tuple[float, float],
) -> tuple[Drawing, Axes]:
    """Draw the curve that `trace` returns, as x and y, for labels and probabilities."""
    labels, probabilities = evaluation.labels, evaluation.probabilities
    draws = evaluation.resamples[:BAND_RESAMPLES]
    curves = [np.interp(GRID, *trace(labels[rows], probabilities[rows])) for rows in draws]
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    figure, axes = make_axes()
    axes.fill_between(GRID, low, high, color=COLOUR, alpha=0.18, linewidth=0, label="95% band")
    axes.plot(*trace(labels, probabilities), color=COLOUR, label=label)
    axes.plot(*point, "o", color=MARK, label="at the threshold")
    return figure, axes
