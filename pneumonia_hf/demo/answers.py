"""The answer on an image, in words that people use, as HTML."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

from pneumonia_hf.inference.predictor import Prediction, Predictor
from pneumonia_hf.models.model_card import find_misfit
from pneumonia_hf.reasons import REFUSING, Reason

DECISIONS = {
    "PNEUMONIA": "Looks like pneumonia",
    "NORMAL": "No pneumonia seen",
    "REFER": "Undecided: a person must look",
    "REFUSED": "Not read: no frontal chest X-ray",
}
CALIBRATED = "Probability of pneumonia, where half of all images show it"
UNCALIBRATED = "Score for pneumonia (not a reliable probability; see About)"


@dataclass(frozen=True)
class ScoredAlike:
    """How many of the images that a model scored about alike showed pneumonia."""

    images: int
    ill: float  # of 100, where half of all images show pneumonia
    low: float  # its 95% interval
    high: float
    data: str


def find_scored_alike(reports: list[dict[str, Any]], probability: float) -> ScoredAlike | None:
    """Return the bin of the largest report in which a probability falls; None without one.

    A report's bins are at the prevalence of its data; shares are moved to 50% by their odds.
    """
    for report in sorted(reports, key=lambda one: -one.get("n", 0)):
        bins = (report.get("calibration") or {}).get("bins")
        prevalence = report.get("prevalence")
        if not bins or not prevalence or prevalence == 1:
            continue
        odds = prevalence / (1 - prevalence)
        nearest = min(
            bins, key=lambda one: abs(_move(one["mean_probability"], 1 / odds) - probability)
        )
        shares = (_move(nearest[key], 1 / odds) for key in ("share", "low", "high"))
        return ScoredAlike(nearest["images"], *(100 * one for one in shares), report["data"])
    return None


def _move(share: float, factor: float) -> float:
    """Return a share whose odds are multiplied."""
    if share >= 1:
        return 1.0
    odds = share / (1 - share) * factor
    return odds / (1 + odds)


def to_html(
    prediction: Prediction, predictor: Predictor, reports: list[dict[str, Any]], seconds: float
) -> str:
    """Return the decision in words, the probability on a scale, what it means, and warnings."""
    decision = prediction.decision
    head = (
        f'<p class="decision {decision.lower()}"><span class="badge">{decision}</span> '
        f"{DECISIONS[decision]}</p>"
    )
    warnings = "".join(f"<li>{html.escape(text)}</li>" for text in prediction.warnings)
    listed = f'<ul class="warnings">{warnings}</ul>' if warnings else ""
    time = f'<p class="small">{seconds:.2f} s · {html.escape(name_model(predictor))}</p>'
    if prediction.probability is None:
        return f'<div class="answer">{head}{listed}{time}</div>'
    point = predictor.operating_point
    title = UNCALIBRATED if find_misfit(reports) else CALIBRATED
    scale = draw_scale(prediction.probability, point.threshold, point.low, point.high, title)
    side = ""
    if decision == "REFER":
        side = f"<p>The side of the threshold is {prediction.label}.</p>"
    known = not prediction.reasons & (REFUSING | {Reason.UNLIKE})
    alike = find_scored_alike(reports, prediction.probability) if known else None
    meaning = ""
    if alike:
        meaning = (
            f"<p>Of 100 test images scored like this, about <b>{alike.ill:.0f}</b> "
            f"({alike.low:.0f} to {alike.high:.0f}) showed pneumonia, where half of all do "
            f"({html.escape(alike.data)}, {alike.images} such images).</p>"
        )
    return f'<div class="answer">{head}{scale}{side}{meaning}{listed}{time}</div>'


def draw_scale(probability: float, threshold: float, low: float, high: float, title: str) -> str:
    """Return a bar from 0 to 100% with the probability, the threshold and the range of REFER."""
    described = (
        f"{title}: {to_percent(probability)}. Positive at or above {to_percent(threshold)}; "
        f"between {to_percent(low)} and {to_percent(high)} a person must look."
    )
    return (
        f'<div class="scale" role="img" aria-label="{html.escape(described)}">'
        f'<div class="band" style="left:{low:.2%};width:{max(high - low, 0.004):.2%}"></div>'
        f'<div class="mark" style="left:{threshold:.2%}"></div>'
        f'<div class="point" data-probability="{probability:.6f}" '
        f'style="left:{probability:.2%}"></div></div>'
        f'<p class="number"><b>{to_percent(probability)}</b> {html.escape(title)}</p>'
        f'<p class="small">Positive at or above {to_percent(threshold)} (line). In the shaded '
        f"range ({to_percent(low)} to {to_percent(high)}) a person must look.</p>"
    )


def to_percent(share: float) -> str:
    """Return a share in percent, with a decimal near 0 and 100 and never rounded to them."""
    percent = 100 * share
    if percent < 0.1:
        return "below 0.1%"
    if percent > 99.9:
        return "above 99.9%"
    return f"{percent:.1f}%" if percent < 10 or percent > 90 else f"{percent:.0f}%"


def name_model(predictor: Predictor) -> str:
    """Return the model's name without a local path, and its revision or the hash of its run."""
    from pathlib import Path

    if predictor.path is None:
        return predictor.name
    local = Path(predictor.name).expanduser().is_dir()  # visitors do not see local paths
    name = predictor.path.resolve().name if local else predictor.name
    # A Hub download lies in a folder that is named after its commit.
    folder = predictor.path.resolve().name
    is_commit = len(folder) == 40 and all(letter in "0123456789abcdef" for letter in folder)
    return f"{name} ({folder[:12]})" if is_commit and not local else name


def to_error(text: str) -> str:
    """Return an error in the place of an answer."""
    return f'<div class="answer" role="alert"><p class="fault">{html.escape(text)}</p></div>'


def describe_change(before: float, after: float, threshold: float) -> str:
    """Return in words how a probability moved."""
    crossed = (before >= threshold) != (after >= threshold)
    moved = after - before
    if math.isclose(before, after, abs_tol=0.005):
        what = "The probability hardly moved"
    else:
        what = f"The probability {'rose' if moved > 0 else 'fell'} by {abs(100 * moved):.0f} points"
    return f"{what}{', and the side of the threshold changed' if crossed else ''}."
