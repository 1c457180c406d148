"""The answer on an image, in words that people use, as HTML."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pneumonia_hf import __version__
from pneumonia_hf.demo.limits import ASSUMED_PREVALENCE
from pneumonia_hf.inference.predictor import Prediction, Predictor
from pneumonia_hf.models.model_card import find_misfit
from pneumonia_hf.reasons import OF_INPUT, REFUSING, Reason
from pneumonia_hf.statistics.log_odds import move_to_prevalence

if TYPE_CHECKING:
    from pneumonia_hf.demo.engine import Engine

DECISIONS = {
    "PNEUMONIA": "Looks like pneumonia",
    "NORMAL": "No pneumonia seen",
    "REFER": "Unsure: a person must look",
    "REFUSED": "Not read: no frontal chest X-ray",
    "": "Not readable",  # a file of a batch
}
WORDS = {"PNEUMONIA": "pneumonia", "NORMAL": "normal"}
# The sentences of reasons that are not plain enough for the page; programs get those of Reason.
PLAIN = {
    Reason.TOO_CLOSE: (
        "Close to the limit: with other patients it could lie anywhere from {low} to {high}."
    ),
    Reason.UNLIKE: (
        "More unusual than 99% of the X-rays of the training hospitals: the answer may not hold."
    ),
    Reason.OTHER_ABNORMAL: "It looks abnormal, but not like pneumonia.",
}
# The reasons that matter most first; those of a model hold for all of its answers, and are last.
IMPORTANCE = (REFUSING, {Reason.UNLIKE}, {Reason.OTHER_ABNORMAL}, OF_INPUT, {Reason.TOO_CLOSE})
WIDEST = 0.5  # of the interval of a share that is shown
CALIBRATED = "probability of pneumonia (assuming {share} of all X-rays show it)"
UNCALIBRATED = "score for pneumonia (not a reliable probability; see About)"


@dataclass(frozen=True)
class Scale:
    """A probability with the limits of its zones, for the prevalence that the page assumes."""

    probability: float
    threshold: float
    low: float  # from here to `high` a person must look
    high: float
    title: str  # what the number is


def make_scale(engine: Engine, probability: float) -> Scale:
    """Return the scale of a calibrated probability, moved to the page's prevalence by Bayes."""
    point, share = engine.predictor.operating_point, engine.prevalence
    numbers = (probability, point.threshold, point.low, point.high)
    if share != ASSUMED_PREVALENCE:
        numbers = (float(move_to_prevalence(one, share, ASSUMED_PREVALENCE)) for one in numbers)
    of_all = "half" if share == ASSUMED_PREVALENCE else f"{100 * share:.3g}%"
    uncalibrated = find_misfit(engine.reports)
    return Scale(*numbers, UNCALIBRATED if uncalibrated else CALIBRATED.format(share=of_all))


def list_warnings(engine: Engine, prediction: Prediction) -> list[str]:
    """Return the warnings in plain words, the most important first."""
    scale = make_scale(engine, prediction.threshold)
    limits = {"low": to_percent(scale.low), "high": to_percent(scale.high)}

    def rank(reason: Reason) -> int:
        ranks = (number for number, some in enumerate(IMPORTANCE) if reason in some)
        return next(ranks, len(IMPORTANCE))

    return [
        PLAIN[one.reason].format(**limits) if one.reason in PLAIN else one.sentence
        for one in sorted(prediction.caveats, key=lambda one: rank(one.reason))
    ]


def explain(engine: Engine, prediction: Prediction) -> str:
    """Return why the decision was made, as one plain sentence."""
    if prediction.probability is None:
        return "The model gives no probability for such an image."
    limit = to_percent(make_scale(engine, prediction.probability).threshold)
    if prediction.decision == "PNEUMONIA":
        return f"Above the limit of {limit} between normal and pneumonia."
    if prediction.decision == "NORMAL":
        return (
            f"Below the limit of {limit} between normal and pneumonia. This does not rule out "
            f"pneumonia or another disease."
        )
    leaning = f"The score alone would say {WORDS[str(prediction.label)]}"
    if Reason.TOO_CLOSE in prediction.reasons:
        return f"{leaning}, but it is too close to the limit of {limit}."
    return f"{leaning} (limit {limit}), but see the warning: it may not hold for this image."


def to_html(
    engine: Engine, prediction: Prediction, facts: list[tuple[str, str]], *more: str
) -> str:
    """Return the verdict, the probability on a scale, what it means, and warnings.

    `facts` are further technical figures, and `more` further sentences below the first.
    """
    decision = prediction.decision
    parts = [
        f'<p class="decision {decision.lower()}" data-decision="{decision}">'
        f"{DECISIONS[decision]}</p>"
    ]
    if prediction.probability is not None:
        parts.append(draw_scale(make_scale(engine, prediction.probability)))
    sentences = (explain(engine, prediction), *more)
    parts += [f'<p class="meaning">{html.escape(one)}</p>' for one in sentences]
    if warnings := list_warnings(engine, prediction):
        listed = "".join(f"<li>{html.escape(one)}</li>" for one in warnings)
        name = "Warning" if len(warnings) == 1 else "Warnings"
        parts.append(
            f'<section class="warnings" aria-label="{name}"><b>{name}</b>'
            f"<ul>{listed}</ul></section>"
        )
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in (*list_figures(engine, prediction), *facts)
    )
    parts.append(f"<details><summary>Technical figures</summary><dl>{listed}</dl></details>")
    return f'<div class="answer">{"".join(parts)}</div>'


def list_figures(engine: Engine, prediction: Prediction) -> list[tuple[str, str]]:
    """Return the technical figures of an answer: what, and its value."""
    point = engine.predictor.operating_point
    facts = [("Decision", prediction.decision)]
    if prediction.probability is not None:
        facts += [
            ("P(pneumonia) at a prevalence of 50%", f"{prediction.probability:.4f}"),
            ("Threshold", f"{point.threshold:.4f}"),
            ("REFER from, to below", f"{point.low:.4f}, {point.high:.4f}"),
        ]
        facts += [("Test X-rays with such a score", one) for one in _list_alike(engine, prediction)]
    if prediction.distance is not None:
        facts.append(("Distance from the training images (limit 1)", f"{prediction.distance:.2f}"))
    if prediction.other_abnormal is not None:
        facts.append(("P(abnormal without pneumonia)", f"{prediction.other_abnormal:.4f}"))
    facts += [("Reason", one) for one in prediction.warnings]
    return [*facts, ("Model", f"{name_model(engine.predictor)}, pneumonia-hf {__version__}")]


def _list_alike(engine: Engine, prediction: Prediction) -> list[str]:
    """Return how often test images with such a score showed pneumonia, a sentence a report.

    None for an image unlike those, and none where the interval says nothing.
    """
    if prediction.reasons & (REFUSING | {Reason.UNLIKE}):
        return []
    found = []
    for report, alike in engine.scored_alike:
        share = alike.find(prediction.probability, engine.prevalence)
        if share.high - share.low <= WIDEST:
            value, low, high = (f"{100 * one:.0f}" for one in (share.value, share.low, share.high))
            found.append(
                f"{value} of 100 showed pneumonia (95% interval {low} to {high}), if "
                f"{100 * engine.prevalence:.3g} of 100 do: {report['data']}, {report['n']} X-rays"
            )
    return found


def draw_scale(scale: Scale) -> str:
    """Return the probability, and a bar from 0 to 100% with named zones."""
    low, high, zones = scale.low, scale.high, list_zones(scale)
    described = f"{to_percent(scale.probability)} {scale.title}. Zones: {', '.join(zones)}."
    names = "".join(
        f'<li class="{text.partition(" ")[0]}">{html.escape(text)}</li>' for text in zones
    )
    return (
        f'<p class="number"><b>{to_percent(scale.probability)}</b> {html.escape(scale.title)}</p>'
        f'<div class="scale" role="img" aria-label="{html.escape(described)}">'
        f'<div class="normal" style="left:0;width:{low:.2%}"></div>'
        f'<div class="unsure" style="left:{low:.2%};width:{high - low:.2%}"></div>'
        f'<div class="pneumonia" style="left:{high:.2%};width:{1 - high:.2%}"></div>'
        f'<div class="point" data-probability="{scale.probability:.6f}" '
        f'style="left:{scale.probability:.2%}"></div></div><ul class="zones">{names}</ul>'
    )


def list_zones(scale: Scale) -> list[str]:
    """Return the names of the zones with their ranges."""
    # Not "below below 0.1%".
    low, high = (to_percent(one).split()[-1] for one in (scale.low, scale.high))
    unsure = [f"unsure {low} to {high}"] if scale.high > scale.low else []
    return [f"normal below {low}", *unsure, f"pneumonia from {high}"]


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
    commit = find_commit(predictor)
    return f"{name} ({commit[:12]})" if commit and not local else name


def find_commit(predictor: Predictor) -> str | None:
    """Return the commit of a model of the Hub, whose download lies in a folder of that name."""
    folder = predictor.path.resolve().name if predictor.path else ""
    is_commit = len(folder) == 40 and all(letter in "0123456789abcdef" for letter in folder)
    return folder if is_commit else None


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
        points = round(abs(100 * moved)) or 1
        name = "point" if points == 1 else "points"
        what = f"The probability {'rose' if moved > 0 else 'fell'} by {points} {name}"
    return f"{what}{', and the side of the threshold changed' if crossed else ''}."
