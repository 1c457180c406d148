"""Section: what other thresholds and prevalences would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.reporting.drawing import COLOUR, OTHER_COLOUR, make_axes
from pneumonia_hf.reporting.numbers import to_text
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.thresholds import (
    DecisionCurve,
    by_prevalence,
    decision_curve,
    list_thresholds,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the results at thresholds found on this data, by prevalence, and the net benefit."""
    labels, probabilities = evaluation.labels, evaluation.probabilities
    threshold, resamples = evaluation.threshold, evaluation.resamples
    thresholds = list_thresholds(
        labels, probabilities, threshold, evaluation.scores.patients, resamples
    )
    values = by_prevalence(labels, probabilities, threshold, resamples)
    curve = decision_curve(labels, probabilities)
    point = evaluation.predictor.operating_point
    own = (
        f"The model's threshold {point.threshold:.4f} was chosen on its validation patients, whose "
        f"resampling moves it between {point.low:.4f} and {point.high:.4f}. "
        if point.low < point.high
        else "The model stores no range for its threshold. "
    )
    body = (
        own + "The other rows say how far the threshold has shifted on this data. They must not be "
        "used: a result at a threshold that was found on the same images is optimistically biased.",
        Table(
            ["threshold", "probability", "sensitivity", "specificity", "usable"],
            [
                [
                    one.name
                    if evaluation.has_threshold or not one.usable
                    else "0.5, since the model stores none",
                    f"{one.threshold:.4f}",
                    to_text(one.sensitivity),
                    to_text(one.specificity),
                    "yes" if one.usable else "no: found on this data",
                ]
                for one in thresholds
            ],
        ),
        "Predictive values at the model's threshold, where sensitivity and specificity stay as "
        "they are:",
        Table(
            ["prevalence", "PPV", "NPV"],
            [[f"{one.prevalence:.0%}", to_text(one.ppv), to_text(one.npv)] for one in values],
        ),
        "The decision curve (Vickers and Elkin 2006) shows the net benefit of acting on the "
        "model's answer, for readers who would act at different probabilities.",
        Figure("decision_curve", lambda: draw_decision_curve(curve, evaluation.prevalence)),
    )
    return Section(
        "Threshold",
        body,
        {
            "thresholds": [asdict(one) for one in thresholds],
            "predictive_values": [asdict(one) for one in values],
            "decision_curve": {name: part.tolist() for name, part in asdict(curve).items()},
        },
    )


def draw_decision_curve(curve: DecisionCurve, prevalence: float) -> Drawing:
    """Return the net benefit by threshold probability, beside acting always and never."""
    figure, axes = make_axes()
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
