"""A one-page report of one image: self-contained HTML and PDF, without the file's name."""

from __future__ import annotations

import datetime
import html
import io
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pneumonia_hf.demo.answers import (
    DECISIONS,
    Scale,
    explain,
    list_figures,
    list_warnings,
    list_zones,
    make_scale,
    to_percent,
)
from pneumonia_hf.demo.answers import to_html as answer_to_html
from pneumonia_hf.demo.images import colour_map, to_data_uri
from pneumonia_hf.demo.page_files import read_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pneumonia_hf.demo.engine import Engine
    from pneumonia_hf.inference.predictor import Prediction

NOTICE = "Research software, not a medical device. Not for diagnosis."
NO_NAME = (
    "This report does not name the patient or the file: text that is part of the X-ray itself "
    "is shown as it is."
)
HTML_OPEN = "<details open>"
NO_PLACE = "Bright places raised the score; they do not locate disease."
IMAGE_SIDE = 900  # pixels
ZONES = {"normal": "#4f9d6b", "unsure": "#e5b14a", "pneumonia": "#c9564d"}
PAGE = (8.27, 11.69)  # A4, in inches
LEFT, WIDTH = 0.07, 0.86  # of the page
NOTE = 0.1  # the least height of the room for a note


@dataclass(frozen=True)
class View:
    """What the viewer shows: levels as there, and the map that lies on the image."""

    level: float = 128  # the gray level shown as middle gray, 0..255
    window: float = 255  # gray levels from black to white
    invert: bool = False
    opacity: float = 60  # of the map, in %
    method: str | None = None
    values: np.ndarray | None = None  # the attribution map, [H, W] in 0..1

    def draw(self, image: Image.Image, with_map: bool) -> Image.Image:
        """Return the image as the viewer shows it, its longer side at most IMAGE_SIDE."""
        small = image.copy()
        small.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
        shown = (np.asarray(small, np.float64) - self.level) / self.window + 0.5
        shown = np.clip(1 - shown if self.invert else shown, 0, 1)
        drawn = Image.fromarray((255 * shown).round().astype(np.uint8)).convert("RGB")
        if with_map and self.values is not None:
            layer = colour_map(self.values).resize(drawn.size, Image.Resampling.BILINEAR)
            alpha = layer.getchannel("A").point(lambda one: one * self.opacity / 100)
            drawn.paste(layer.convert("RGB"), mask=alpha)
        return drawn

    def describe(self) -> str:
        """Return the settings in words."""
        inverted = ", inverted" if self.invert else ""
        opacity = f", map at {self.opacity:.0f}%" if self.values is not None else ""
        return f"level {self.level:.0f}, window {self.window:.0f}{inverted}{opacity}"


def list_images(engine: Engine, image: Image.Image, view: View) -> list[tuple[str, Image.Image]]:
    """Return the images of a report with their titles."""
    shown = [("X-ray", view.draw(image, with_map=False))]
    if view.values is not None:
        title = f"{engine.title_of(str(view.method))} ({engine.verdict_of(str(view.method))})"
        shown.append((title, view.draw(image, with_map=True)))
    return shown


def list_facts(view: View) -> list[tuple[str, str]]:
    """Return how the report was made: what, and its value."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    place = [("Map", NO_PLACE)] if view.values is not None else []
    return [("Shown with", view.describe()), *place, ("Made", now)]


def to_html(engine: Engine, prediction: Prediction, image: Image.Image, view: View) -> str:
    """Return the report as one HTML file that loads nothing: the images, and the page's answer."""
    figures = "".join(
        f'<figure><img src="{to_data_uri(one, IMAGE_SIDE)}" alt="{html.escape(title)}">'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, one in list_images(engine, image, view)
    )
    answer = answer_to_html(engine, prediction, list_facts(view)).replace("<details>", HTML_OPEN)
    style = read_page("answer.css")
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>X-ray report</title>"
        f"<style>{style}:root{{--body-text-color:#111;--background-fill-primary:#fff}}"
        "body{font-family:system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;"
        "color:#111}.images{display:flex;gap:1rem}figure{flex:1;margin:0}img{width:100%}</style>"
        f"<h1>Pneumonia in a chest X-ray</h1><p><b>{NOTICE}</b></p>"
        f'<div class="images">{figures}</div>{answer}<p>{NO_NAME}</p></html>'
    )


def to_pdf(engine: Engine, prediction: Prediction, image: Image.Image, view: View) -> bytes:
    """Return the report as a PDF of one A4 page, drawn by matplotlib."""
    from matplotlib.figure import Figure

    page = Figure(figsize=PAGE)
    facts = (*list_figures(engine, prediction), *list_facts(view))
    facts = [f"{name}: {text}" for name, text in facts if name != "Reason"]  # it is a warning
    warnings = [f"Warning: {one}" for one in list_warnings(engine, prediction)]
    blocks = [([explain(engine, prediction)], 11, "white"), (warnings, 10, "#fff4d6"),
              ([*facts, NO_NAME], 8, "white")]  # fmt: skip
    blocks = [(_wrap(texts, size), size, box) for texts, size, box in blocks if texts]
    bar = 0.095 if prediction.probability is not None else 0
    room = 0.88 - bar - sum(_measure(lines, size) for lines, size, _ in blocks) - 0.08 - NOTE
    page.text(LEFT, 0.955, DECISIONS[prediction.decision], size=20, weight="bold")
    page.text(LEFT, 0.932, NOTICE, size=9)
    top = _draw_images(page, list_images(engine, image, view), room)
    if bar:
        _draw_scale(page, top, make_scale(engine, prediction.probability))
        top -= bar
    for lines, size, box in blocks:
        frame = {"facecolor": box, "edgecolor": "white" if box == "white" else "#d99a1c", "pad": 6}
        # No mathematical notation: a model's name may hold a dollar sign.
        page.text(LEFT, top, "\n".join(lines), size=size, va="top", parse_math=False, bbox=frame,
                  linespacing=1.35)  # fmt: skip
        top -= _measure(lines, size)
    page.text(LEFT, top - 0.012, "Note", size=10, weight="bold", va="top")
    box = page.add_axes((LEFT, 0.04, WIDTH, max(top - 0.075, 0.01)))
    box.set(xticks=[], yticks=[])
    buffer = io.BytesIO()
    # Without dates and names of programs, so that the same image gives the same report.
    page.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Producer": None,
                                                 "Creator": None})  # fmt: skip
    return buffer.getvalue()


def _draw_images(page: Figure, shown: list[tuple[str, Image.Image]], room: float) -> float:
    """Draw the images side by side, at most `room` high, and return where they end."""
    part = (WIDTH - 0.02 * (len(shown) - 1)) / len(shown)
    width, height = shown[0][1].size
    height = max(0.02, min(0.42, room, part * height / width * PAGE[0] / PAGE[1]))
    for place, (title, one) in enumerate(shown):
        axes = page.add_axes((LEFT + (part + 0.02) * place, 0.905 - height, part, height))
        axes.imshow(np.asarray(one))
        axes.set_title(title, size=9)
        axes.axis("off")
    return 0.88 - height


def _draw_scale(page: Figure, top: float, scale: Scale) -> None:
    """Draw the probability, and below it the bar with its named zones."""
    page.text(LEFT, top - 0.02, to_percent(scale.probability), size=22, weight="bold")
    page.text(LEFT + 0.2, top - 0.015, scale.title, size=9)
    axes = page.add_axes((LEFT, top - 0.055, WIDTH, 0.022))
    edges = {"normal": (0, scale.low), "unsure": (scale.low, scale.high),
             "pneumonia": (scale.high, 1)}  # fmt: skip
    for name, (start, end) in edges.items():
        axes.axvspan(start, end, color=ZONES[name], linewidth=0)
    axes.plot([scale.probability], [0.5], "o", color="black", markersize=11, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
    axes.text(0, -0.5, "   |   ".join(list_zones(scale)), size=9, va="top", color="black")


def _wrap(texts: list[str], size: int) -> list[str]:
    return [line for one in texts for line in textwrap.wrap(one, round(1010 / size))]


def _measure(lines: list[str], size: int) -> float:
    """Return the height of lines with the space below them, as a share of the page."""
    return len(lines) * size * 1.35 * 1.2 / (PAGE[1] * 72) + 0.018
