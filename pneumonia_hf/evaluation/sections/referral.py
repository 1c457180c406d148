"""Section: the images that the model refers to a person, and the error on the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.evaluation.scores import IN_RANGE
from pneumonia_hf.reporting.drawing import COLOUR, MARK, make_axes
from pneumonia_hf.reporting.numbers import to_share, to_text
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.selective import (
    ReferralReason,
    RiskCoverage,
    measure_referral,
    risk_coverage,
    split_by_reason,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

POINTS = np.linspace(0, 1, 101)[1:]  # shares of the images at which report.json has the risk


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the share of referred images beside the error on the others."""
    labels, positive, scores = evaluation.labels, evaluation.positive, evaluation.scores
    every, metrics, count = evaluation.referral, evaluation.metrics, len(evaluation.labels)
    alone = measure_referral(labels, positive, scores.reasons[IN_RANGE], evaluation.resamples)
    reasons = split_by_reason(labels, positive, scores.reasons)
    curve = risk_coverage(
        labels, evaluation.probabilities, evaluation.threshold, evaluation.resamples
    )
    kept = [
        [f"kept, if {name}", count - one.referred, to_share(count - one.referred, count),
         to_text(one.error_of_kept), to_text(one.sensitivity_of_kept),
         to_text(one.specificity_of_kept)]
        for name, one in (("the range of the threshold alone refers", alone),
                          ("gate and input checks refer too", every))
    ]  # fmt: skip
    body = (
        Table(
            ["", "images", "share", "error (95% interval)", "sensitivity", "specificity"],
            [
                ["all", count, "100%", to_text(every.error), to_text(metrics["sensitivity"]),
                 to_text(metrics["specificity"])],
                *kept,
                ["referred", every.referred, to_share(every.referred, count),
                 _to_error(every.error_of_referred), "", ""],
            ],
        ),
        "An image is referred if its probability lies in the range in which resampling the "
        "validation patients moves the threshold, if the input gate finds it unlike the training "
        "images, or if the input checks doubt that it is a chest X-ray. Referral helps only if the "
        "error on the kept images is below that on all. Reasons overlap:",
        Table(
            ["reason", "images", "their error", "error without them"],
            [
                [one.reason, one.images, _to_error(one.error), _to_error(one.error_without)]
                for one in reasons
            ],
        ),
        *describe_useless(reasons),
        f"If the surest images, farthest from the threshold, are answered first, the mean error "
        f"over all shares of answered images (AURC, Geifman and El-Yaniv 2017) is "
        f"{to_text(curve.aurc)}, {curve.excess:.3f} above that of a perfect order.",
        Figure("risk_coverage", lambda: draw_risk_coverage(curve, evaluation)),
    )  # fmt: skip
    return Section(
        "Knowing when not to answer",
        body,
        {
            "referred": every.referred,
            "referral": asdict(every),
            "referral_by_threshold": asdict(alone),
            "referral_reasons": [asdict(one) for one in reasons],
            "risk_coverage": {
                "coverage": POINTS.tolist(),
                "risk": np.interp(POINTS, curve.coverage, curve.risk).tolist(),
                "aurc": asdict(curve.aurc),
                "excess": curve.excess,
            },
        },
    )


def describe_useless(reasons: Sequence[ReferralReason]) -> list[str]:
    """Return a sentence on the reasons that refer images, but no more errors than the rest has."""
    useless = [
        f"{one.reason} (error {one.error:.3f} of {one.images}, {one.error_without:.3f} of the rest)"
        for one in reasons
        if one.images and not one.error > one.error_without  # NaN: nothing is left
    ]
    if not useless:
        return []
    return [f"Of these, what does not lower the error of the images kept: {'; '.join(useless)}."]


def _to_error(error: float) -> str:
    return "-" if math.isnan(error) else f"{error:.3f}"


def draw_risk_coverage(curve: RiskCoverage, evaluation: Evaluation) -> Drawing:
    """Return the error of the surest images by their share, and the point of REFER."""
    figure, axes = make_axes()
    label = f"surest images first (AURC {curve.aurc.value:.3f})"
    axes.plot(curve.coverage, curve.risk, color=COLOUR, label=label)
    referral = evaluation.referral
    kept = 1 - referral.referred / len(evaluation.labels)
    axes.plot(kept, referral.error_of_kept.value, "o", color=MARK, label="without those referred")
    axes.set(
        xlabel="share of the images that get an answer",
        ylabel="share of wrong answers among them",
        title="Risk and coverage",
        ylim=(0, max(0.02, 1.15 * float(np.nanmax(curve.risk)))),
    )
    axes.legend(loc="upper left", fontsize=9)
    return figure
