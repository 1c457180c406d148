"""Section: whether the probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.reporting.drawing import COLOUR, OTHER_COLOUR, make_axes
from pneumonia_hf.reporting.numbers import to_slope, to_text
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.calibration import CalibrationQuality, measure_calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return calibration error, slope, intercept, and the losses by prevalence."""
    found = measure_calibration(evaluation.labels, evaluation.probabilities, evaluation.resamples)
    return describe(found, evaluation)


def describe(found: CalibrationQuality, evaluation: Evaluation) -> Section:
    """Return the section of a measured calibration."""
    basis = (
        "The model's probability is calibrated for a prevalence of 50%."
        if evaluation.has_threshold
        else "The model does not say for which prevalence its probability is meant; 50% is assumed."
    )
    body = (
        f"{basis} Moved to this data's prevalence of {evaluation.prevalence:.1%}, its calibration "
        f"slope (below 1: overconfident) is {to_slope(found.slope)}; its intercept (above 0: the "
        f"probabilities are too low; Cox 1958) is {to_text(found.intercept)}. The "
        f"likelihood-ratio test that they are 1 and 0, for images that count as independent, gives "
        f"p = {found.p:.2g}; a small p is evidence against calibration.",
        Table(
            ["images", "Brier score", "log loss", "calibration error"],
            [
                [row.name, *(f"{value:.3f}" for value in (row.brier, row.log_loss, row.ece))]
                for row in found.losses
            ],
        ),
        "The calibration error is over ten bins of equal size; the figure shows the probabilities "
        "moved to this data's prevalence. The rows of other prevalences weigh "
        "the classes of this data; a probability that is not moved to the prevalence is wrong "
        "there.",
        Figure("calibration", lambda: draw_calibration(found, evaluation)),
    )
    return Section("Calibration", body, {"calibration_p": found.p, "calibration": asdict(found)})


def draw_calibration(found: CalibrationQuality, evaluation: Evaluation) -> Drawing:
    """Return the reliability diagram over bins of equal size, with Wilson's 95% intervals."""
    figure, axes = make_axes()
    axes.plot([0, 1], [0, 1], color=OTHER_COLOUR, linestyle=":", label="perfect calibration")
    for one in found.bins:
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
        f"Calibration at a prevalence of {evaluation.prevalence:.0%}\n"
        f"expected error {found.losses[1].ece:.3f}, "
        f"{evaluation.metrics['ece_balanced'].value:.3f} at 50%",
        fontsize=11,
    )
    return figure
