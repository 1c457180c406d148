"""Training curves of a run, as a figure in the model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.phases import Outcome

BLUE, ORANGE, GREY = "#1f5fa8", "#c8641e", "#777777"


def draw_curves(path: Path, outcomes: Sequence[Outcome], arguments: XrayTrainingArguments) -> None:
    """Write a figure of losses, validation metric and learning rate over the steps of a run.

    Args:
        path: the PNG to write.
        outcomes: of each phase, in order.
        arguments: of the run; its `metric_for_best_model` is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = arguments.metric_for_best_model
    metric = "auroc" if metric == "loss" else metric
    figure = Figure(figsize=(7, 7.5))
    FigureCanvasAgg(figure)
    # Fixed margins: to measure them would take as long as to draw the figure.
    figure.subplots_adjust(left=0.12, right=0.97, top=0.95, bottom=0.07, hspace=0.08)
    losses, metrics, rates = figure.subplots(3, sharex=True, height_ratios=[2, 2, 1])
    _plot(losses, outcomes, "loss", BLUE, "training, as logged", ".-")
    _plot(losses, outcomes, "eval_loss", ORANGE, "validation, balanced classes", "o-")
    _plot(metrics, outcomes, f"eval_{metric}", ORANGE, f"validation {metric}", "o-")
    _plot(rates, outcomes, "learning_rate", GREY, "learning rate of the head", ".-")
    for axes, label in ((losses, "loss"), (metrics, metric), (rates, "rate")):
        axes.set_ylabel(label)
        if axes.lines and axes is not rates:  # a run of a few steps may log nothing
            axes.legend(frameon=False)
    rates.set_xlabel("step")
    before = 0
    for number, outcome in enumerate(outcomes, start=1):
        best = before + int(outcome.checkpoint.removeprefix("checkpoint-"))
        metrics.axvline(best, color=ORANGE, alpha=0.4, linestyle=":")
        before += outcome.steps
        if number < len(outcomes):
            for axes in (losses, metrics, rates):
                axes.axvline(before, color="black", linewidth=0.8)
    phases = "" if len(outcomes) == 1 else f" in {len(outcomes)} phases (black lines)"
    losses.set_title(f"{before} steps{phases}; dotted: the checkpoint kept", fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _plot(axes: Any, outcomes: Sequence[Outcome], key: str, colour: str, name: str, mark: str):
    """Draw one quantity of the log, with a line for each phase."""
    before = 0
    for outcome in outcomes:
        points = [(before + entry["step"], entry[key]) for entry in outcome.log if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), mark, color=colour, label=name, markersize=4)
            name = None  # one entry in the legend
        before += outcome.steps
