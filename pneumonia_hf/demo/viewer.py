"""The viewer: one image, its answer and maps, what a hidden part or an opacity changes."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from pneumonia_hf.demo import case_report
from pneumonia_hf.demo.answers import describe_change, draw_scale, make_scale, to_error
from pneumonia_hf.demo.answers import to_html as answer_to_html
from pneumonia_hf.demo.batch_page import ShownBatch
from pneumonia_hf.demo.engine import FILLS, NAMES, Engine, Stopped, mask
from pneumonia_hf.demo.examples import Example, film_size, simulate_opacity
from pneumonia_hf.demo.images import THUMBNAIL_SIDE, map_to_data_uri, to_data_uri
from pneumonia_hf.demo.page_files import read_page
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.phantom import simulate

# In this order they are the body of one function, which gradio runs when the page is loaded.
PARTS = ("dom", "viewer", "server", "files", "maps", "gestures", "hide", "opacity", "start")
MOST_DIAMETER = 120.0  # mm
QUICK = "cam"  # the method whose map follows the hand
HARDLY = 0.02  # a change of the probability that is none
RECEIVE = (
    '(answer) => {{ document.dispatchEvent(new CustomEvent("xray-answer", '
    '{{detail: {{...answer, kind: "{kind}"}}}})); }}'
)
NUMBER = (int, float)
Message = dict[str, Any]
Held = dict[str, Any]  # the X-ray of a visitor, in memory: "xray", its "prediction" and "name"


def add_viewer(engine: Engine, examples: list[Example], batch: gr.State) -> None:
    """Add the viewer to the blocks that are being built.

    Its JavaScript sends events; an event's answer goes to a hidden component, and from there to
    the JavaScript again. None of the events is an endpoint of the API. X-rays of `batch`, a
    ShownBatch, are opened by number.
    """
    held = gr.State(None, time_to_live=1800)
    viewer = gr.HTML(
        html_template=read_page("viewer.html"),
        js_on_load=read_page(*(f"{one}.js" for one in PARTS)),
        elem_id="viewer",
        examples=[
            {
                "title": one.title,
                "note": one.note,
                "image": to_data_uri(one.open().image, THUMBNAIL_SIDE),
            }
            for one in examples
        ],
        phantom=to_data_uri(simulate()[0], THUMBNAIL_SIDE),
        film=film_size(),
        kept=engine.limits.kept_seconds,
        methods=[{"method": one, "title": NAMES.get(one, one)} for one in engine.methods],
        offered=engine.offered_method,
        fills=list(FILLS),
    )

    def analyse(event: gr.EventData, batch: ShownBatch | None) -> tuple[Held | None, Message]:
        return _analyse(engine, examples, event, batch)

    def answer_for(function: Callable[..., Message]) -> Callable[..., Message]:
        # Not functools.partial: gradio finds the event by the annotation.
        def answer(event: gr.EventData, found: Held | None) -> Message:
            return function(engine, event, found) | {"number": _take(event, "number", int)}

        return answer

    work = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple",
            "concurrency_id": "page", "concurrency_limit": engine.limits.requests}  # fmt: skip
    answers = {"explain": _explain, "mask": _mask, "simulate": _simulate,
               "attribute": _attribute, "report": _report}  # fmt: skip
    # Of its own: it must not wait behind what it stops.
    stopping = work | {"concurrency_id": None, "concurrency_limit": None}
    viewer.stop(_stop, held, None, **stopping)
    for kind in ("analyse", *answers):
        channel, js = gr.JSON(visible=False), RECEIVE.format(kind=kind)
        if kind == "analyse":
            done = viewer.analyse(analyse, batch, [held, channel], **work)
        else:
            done = getattr(viewer, kind)(answer_for(answers[kind]), held, channel, **work)
        private = {"api_visibility": "private"}
        done.success(None, channel, None, js=js, **private)
        done.failure(None, None, None, js=js.replace("(answer)", "(answer = {})"), **private)


def _analyse(
    engine: Engine,
    examples: list[Example],
    event: gr.EventData,
    batch: ShownBatch | None = None,
) -> tuple[Held | None, Message]:
    started, number = time.perf_counter(), {"number": _take(event, "number", int)}
    path, example = _take(event, "path", (str, type(None))), _take(event, "example", int)
    row = getattr(event, "row", -1)
    of_batch = batch is not None and isinstance(row, int) and row >= 0
    if not path and not of_batch and example not in range(len(examples)):
        raise UserError("There is no such example.")
    try:
        if of_batch:
            xray, file = batch.open(row, engine), PurePosixPath(batch.rows[row].file)
            name = "-".join([*file.parts[:-1], file.stem])  # folders in a zip tell files apart
        else:
            xray = engine.read(_check_upload(path)) if path else examples[example].open()
            name = Path(path or examples[example].title).stem
        prediction = engine.predict(xray)
    except UserError as error:  # in the place of the answer, where it stays
        return None, number | {"answer": to_error(str(error))}
    seconds = time.perf_counter() - started
    text = answer_to_html(engine, prediction, [("Time", f"{seconds:.2f} s")])
    scored = prediction.probability is not None
    width, height = xray.image.size
    held = {"xray": xray, "prediction": prediction, "name": name}
    return number | held, number | {
        "answer": text,
        "image": to_data_uri(xray.image),
        "width": width,
        "height": height,
        "view": xray.view,
        "side": xray.side,
        "scored": scored,
        "map": engine.default_method if scored else None,
    }


def _check_upload(path: str) -> str:
    """Return a path that is inside of the folder of uploads, whatever a request says."""
    if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise UserError("This is no upload; choose the file again.")
    return path


def _check(event: gr.EventData, found: Held | None, scored: bool = True) -> Held:
    """Return what is held, if it is the X-ray that the page shows.

    Raises:
        UserError: it is another one, after a wait that was cancelled, or is no longer held; it
            must be `scored`, and has no probability.
    """
    if found is None or found["number"] != _take(event, "of", int):
        raise UserError("The server no longer holds this X-ray; open it again.")
    if scored and found["prediction"].probability is None:
        raise UserError("The model does not take this for a chest X-ray.")
    return found


def _explain(engine: Engine, event: gr.EventData, found: Held | None) -> Message:
    found = _check(event, found)
    image, methods = found["xray"].image, _take(event, "methods", list)[:2]
    number = _take(event, "number", int)

    def is_wanted() -> bool:
        return number > found.get("stopped", 0)

    try:
        return {"maps": [_draw_map(engine, image, name, is_wanted) for name in methods]}
    except Stopped:
        return {"maps": []}  # the page drops it


def _stop(event: gr.EventData, found: Held | None) -> None:
    """End the computation of the maps that were asked for up to a number."""
    if found is not None:
        found["stopped"] = _take(event, "number", int)


def _draw_map(
    engine: Engine, image: Any, method: str, is_wanted: Callable[[], bool] = lambda: True
) -> Message:
    made = engine.attribute(image, method, is_wanted)
    verdict = f"{engine.title_of(method)}: {engine.verdict_of(method)}."
    said = (verdict, engine.sentences.get(method), *made.warnings)
    title = " ".join(filter(None, said))
    return {"method": method, "title": title, "source": map_to_data_uri(made.values)}


def _report(engine: Engine, event: gr.EventData, found: Held | None) -> Message:
    """Return the report of the image, with the map that the page shows."""
    found = _check(event, found, scored=False)
    image, prediction = found["xray"].image, found["prediction"]
    method = next(iter(_take(event, "methods", list)), None)
    shown = case_report.View(
        level=_clip(_take(event, "level", NUMBER), -1000, 1000),
        window=_clip(_take(event, "window", NUMBER), 1, 1000),
        invert=_take(event, "invert", bool),
        opacity=100 * _clip(_take(event, "strength", NUMBER), 0, 1),
        method=method,
        values=engine.attribute(image, method).values if method else None,
    )
    kind = _take(event, "format", str)
    arguments, name = (engine, prediction, image, shown), f"{found['name']}-report.{kind}"
    if kind == "pdf":
        coded = base64.b64encode(case_report.to_pdf(*arguments)).decode()
        return {"file": {"name": name, "kind": "application/pdf", "base64": coded}}
    text = case_report.to_html(*arguments)
    return {"file": {"name": name, "kind": "text/html", "text": text}}


def _mask(engine: Engine, event: gr.EventData, found: Held | None) -> Message:
    found = _check(event, found)
    border = _clip(_take(event, "border", NUMBER), 0, 0.45)
    left, top, right, bottom = (
        _clip(one, 0, 1) for one in (*_take(event, "box", list), *[0] * 4)[:4]
    )
    box = (left, top, right, bottom) if right > left and bottom > top else None
    fill = fill if (fill := _take(event, "fill", str)) in FILLS else FILLS[0]
    image = mask(found["xray"].image, border, box, fill)
    before = after = found["prediction"].probability
    if border or box:
        # The gate is left out: a hidden part makes any image unlike the training images.
        after = engine.predict(replace(found["xray"], image=image), refuse=False).probability
    first, scale = make_scale(engine, before), make_scale(engine, after)
    change = describe_change(first.probability, scale.probability, scale.threshold)
    return {
        "image": to_data_uri(image),
        "before": first.probability,
        "text": f'<div class="answer"><p><b>{change}</b></p>{draw_scale(scale)}</div>',
    }


def _take(event: gr.EventData, name: str, kind: Any) -> Any:
    """Return a value of a request.

    Raises:
        UserError: it has none of this name and kind, so that it does not come from our page.
    """
    try:
        value = getattr(event, name)
    except (AttributeError, TypeError):
        value = None
    if not isinstance(value, kind):
        raise UserError(f"The request has no usable value of {name}.")
    return value


def _clip(value: Any, low: float, high: float) -> float:
    """Return a number within its range, and `low` for what is none."""
    is_number = isinstance(value, NUMBER) and math.isfinite(value)
    return min(max(float(value), low), high) if is_number else low


def _read_opacity(event: gr.EventData) -> tuple[tuple[float, float], float]:
    x, y, diameter = (_take(event, one, NUMBER) for one in ("x", "y", "diameter"))
    return (_clip(x, 0, 1), _clip(y, 0, 1)), _clip(diameter, 0, MOST_DIAMETER)


def _simulate(engine: Engine, event: gr.EventData, found: Held | None) -> Message:
    """Return the simulated patient with an opacity, and what the model answers to it."""
    xray, inside = simulate_opacity(*_read_opacity(event))
    # The gate only warns: its question is not whether this patient is simulated.
    probability = engine.predict(xray, refuse=False).probability
    normal = make_scale(engine, engine.simulated_normal).probability
    scale = make_scale(engine, probability)
    text = describe_opacity(inside, normal, scale.probability)
    width, height = xray.image.size
    return {
        "image": to_data_uri(xray.image),
        "width": width,
        "height": height,
        "normal": normal,
        "text": f'<div class="answer"><p role="status"><b>{text}</b></p>{draw_scale(scale)}</div>',
    }


def describe_opacity(inside: bool, normal: float, probability: float) -> str:
    """Return in words what an opacity did to the answer, and whether it should have."""
    points = round(100 * (probability - normal))
    moved = abs(probability - normal) >= HARDLY
    change = f"{'rose' if points > 0 else 'fell'} by {abs(points)} point{'s' * (abs(points) != 1)}"
    if inside:
        what = f"the probability {change}" if moved else "the probability hardly moved"
        return f"In a lung: {what}."
    if moved:
        return f"Outside of the lungs the answer should not move: it {change}, a warning sign."
    return "Outside of the lungs: the answer did not move, as it should be."


def _attribute(engine: Engine, event: gr.EventData, found: Held | None) -> Message:
    """Return the map of the simulated patient."""
    xray, _ = simulate_opacity(*_read_opacity(event))
    method = QUICK if QUICK in engine.methods else engine.offered_method
    return {"maps": [_draw_map(engine, xray.image, method)]}
