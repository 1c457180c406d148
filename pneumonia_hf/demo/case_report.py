"""A one-page report of one image: self-contained HTML and PDF, without the file's name."""

from __future__ import annotations

import datetime
import html
import io
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf import __version__
from pneumonia_hf.demo.answers import DECISIONS, name_model, to_percent
from pneumonia_hf.demo.images import to_data_uri
from pneumonia_hf.inference.attribution import overlay

if TYPE_CHECKING:
    from PIL import Image

    from pneumonia_hf.demo.engine import Engine
    from pneumonia_hf.inference.predictor import Prediction

NOTICE = "Research software, not a medical device. Not for diagnosis."
NO_NAME = (
    "This report does not name the patient or the file: text that is part of the X-ray itself "
    "is shown as it is."
)
IMAGE_SIDE = 900  # pixels


def list_facts(engine: Engine, prediction: Prediction, method: str | None) -> list[tuple[str, str]]:
    """Return the lines of a report: what, and its value."""
    point = engine.predictor.operating_point
    facts = [("Decision", f"{prediction.decision}: {DECISIONS[prediction.decision]}")]
    if prediction.probability is not None:
        facts += [
            ("Probability of pneumonia", f"{to_percent(prediction.probability)}, where half of all "
             "images show it"),
            ("Positive at or above", to_percent(point.threshold)),
            ("A person must look between", f"{to_percent(point.low)} and {to_percent(point.high)}"),
        ]  # fmt: skip
    facts += [("Reservation", text) for text in prediction.warnings]
    if method:
        facts.append(("Attribution map", f"{engine.title_of(method)}; it does not locate disease"))
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts.append(("Model", f"{name_model(engine.predictor)}, pneumonia-hf {__version__}, {now}"))
    return facts


def to_html(
    engine: Engine,
    prediction: Prediction,
    image: Image.Image,
    values: np.ndarray | None,
    method: str | None,
) -> str:
    """Return the report as one HTML file that loads nothing."""
    shown = [("X-ray as the model reads it", image)]
    if values is not None:
        shown.append(("Attribution map", overlay(image, values)))
    figures = "".join(
        f'<figure><img src="{to_data_uri(one, IMAGE_SIDE)}" alt="{title}">'
        f"<figcaption>{title}</figcaption></figure>"
        for title, one in shown
    )
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
        for name, text in list_facts(engine, prediction, method if values is not None else None)
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>X-ray report</title>"
        "<style>body{font-family:system-ui,sans-serif;max-width:50rem;margin:2rem auto;"
        "padding:0 1rem;color:#111}div{display:flex;gap:1rem}figure{flex:1;margin:0}"
        "img{width:100%}figcaption{font-size:.85rem}th{text-align:left;vertical-align:top;"
        "padding:.25rem 1rem .25rem 0;white-space:nowrap}</style>"
        f"<h1>Pneumonia in a chest X-ray</h1><p><b>{NOTICE}</b></p><div>{figures}</div>"
        f"<table>{rows}</table><p>{NO_NAME}</p></html>"
    )


def to_pdf(
    engine: Engine,
    prediction: Prediction,
    image: Image.Image,
    values: np.ndarray | None,
    method: str | None,
) -> bytes:
    """Return the report as a PDF of one page, drawn by matplotlib."""
    import textwrap

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.27, 11.69))  # A4
    figure.text(0.08, 0.95, "Pneumonia in a chest X-ray", size=16, weight="bold")
    figure.text(0.08, 0.925, NOTICE, size=10, weight="bold")
    shown = [("X-ray as the model reads it", image)]
    if values is not None:
        shown.append(("Attribution map", overlay(image, values)))
    for place, (title, one) in enumerate(shown):
        small = one.copy()
        small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        axes = figure.add_axes((0.08 + 0.43 * place, 0.56, 0.41, 0.34))
        axes.imshow(np.asarray(small), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, size=9)
        axes.axis("off")
    height = 0.52
    facts = list_facts(engine, prediction, method if values is not None else None)
    for name, text in [*facts, ("", NO_NAME)]:
        lines = textwrap.wrap(text, 72)
        figure.text(0.08, height, name, size=9, weight="bold", va="top")
        # No mathematical notation: a model's name may hold a dollar sign.
        figure.text(0.36 if name else 0.08, height, "\n".join(lines), size=9, va="top",
                    parse_math=False)  # fmt: skip
        height -= 0.018 * len(lines) + 0.008
    buffer = io.BytesIO()
    # Without dates and names of programs, so that the same image gives the same report.
    figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Producer": None,
                                                   "Creator": None})  # fmt: skip
    return buffer.getvalue()
