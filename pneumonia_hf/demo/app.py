"""build_demo: the page and its endpoints; the package `demo` alone imports gradio."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from pneumonia_hf.compat.gradio import SentenceBlocks, make_upload
from pneumonia_hf.demo import case_report
from pneumonia_hf.demo.about import describe_model
from pneumonia_hf.demo.answers import describe_change, draw_scale, to_error
from pneumonia_hf.demo.answers import to_html as answer_to_html
from pneumonia_hf.demo.batch_table import to_csv, to_table
from pneumonia_hf.demo.endpoints import add_endpoints
from pneumonia_hf.demo.engine import FILLS, NO_MAP, Engine, mask
from pneumonia_hf.demo.guard import Guard
from pneumonia_hf.demo.images import map_to_data_uri, to_data_uri
from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.predictor import Predictor

NOTICE = (
    "**Research software, not a medical device.** Do not use it to diagnose or rule out disease. "
    "It makes errors, above all on X-rays unlike its training data."
)
MAP_NOTICE = (
    "Bright places raised the score. They do **not** locate disease: such maps agree poorly with "
    "radiologists. Full brightness is the value for a typical pneumonia of the validation images, "
    "so a dark map means that the model found little."
)
WHAT_IF = (
    "Hide the border, or drag over a part of the X-ray, and see whether the probability moves. A "
    "model that looks at the lungs should not mind a hidden border, and should mind hidden lungs."
)
BATCH = (
    "Up to {batch} X-rays, or zip files of them. Sorted by what needs attention: pneumonias, "
    "undecided ones, files to check, and then the others."
)
PAGE = Path(__file__).with_name("page")
DRAWN = Path(__file__).parents[2] / "docs" / "drawn_xray.png"  # not in an installed package
# Saves a text or coded bytes, given as {name, kind, text or base64}, without a file on the server.
SAVE = """
(file) => {
  if (!file) return;
  const bytes = file.base64 === undefined
    ? new TextEncoder().encode(file.text)
    : Uint8Array.from(atob(file.base64), (letter) => letter.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], {type: file.kind}));
  link.download = file.name;
  link.click();
}
"""


def _read_page(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def launch_options(limits: Limits, login: str | None = None) -> dict[str, Any]:
    """Return the keyword arguments for `launch`: a page of its own parts, guarded and bounded.

    `login` is `user:password`; with it, every route wants it.
    """
    guard = Middleware(Guard, login=login, uploads=_upload_folder())
    return {
        "theme": _make_theme(),
        "css": _read_page("page.css"),
        "js": _read_page("page.js"),
        "max_file_size": limits.upload_mb * 10**6,
        "state_session_capacity": limits.sessions,
        "app_kwargs": {"middleware": [guard]},
        "ssr_mode": False,
        "run_history": False,
        "enable_monitoring": False,
        "footer_links": ["api", "settings"],
    }


def _make_theme() -> gr.themes.Base:
    """Return gradio's theme with colours that have the contrast of WCAG AA."""
    # System fonts: the page loads nothing from another server.
    theme = gr.themes.Soft(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        block_label_text_color="*primary_700",
        block_title_text_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        checkbox_label_background_fill_selected="*primary_600",
        color_accent="*primary_700",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        link_text_color_hover_dark="*primary_300",
        link_text_color_active_dark="*primary_300",
        link_text_color_visited_dark="*primary_300",
    )


def _upload_folder() -> str:
    from gradio.utils import get_upload_folder

    return get_upload_folder()


def build_demo(predictor: Predictor, limits: Limits | None = None) -> gr.Blocks:
    """Return the app for one model; `.launch(**launch_options(limits))` serves it.

    The endpoints are those of `add_endpoints`; docs/space.md describes them.
    """
    limits = limits or Limits.from_environment()
    engine = Engine(predictor, limits)
    kept = limits.kept_seconds
    with SentenceBlocks(
        title="Pneumonia in chest X-rays",
        analytics_enabled=False,
        delete_cache=(max(1, kept // 4), kept),
    ) as demo:
        add_endpoints(engine)  # first: an event of the page would take one of their names
        gr.Markdown("# Pneumonia in chest X-rays")
        gr.Markdown(NOTICE)
        # The X-ray of this visitor, in memory: {"xray": Xray, "prediction": ...}.
        held = gr.State(None, time_to_live=1800)
        with gr.Tabs():
            with gr.Tab("Image"):
                shown = _add_one_image(engine, held)
            with gr.Tab("What if") as what_if:
                _add_what_if(engine, held, what_if, shown)
            with gr.Tab("Batch"):
                _add_batch(engine)
            with gr.Tab("About"):
                gr.Markdown(describe_model(engine))
    return demo.queue(max_size=limits.queue)


def _add_one_image(engine: Engine, held: gr.State) -> gr.HTML:
    """Add the tab of one image, and return its answer, which changes with each image."""
    titles = [(engine.title_of(name), name) for name in engine.methods]
    none = ("no map", NO_MAP)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            file = make_upload(
                label="Frontal chest X-ray (drop, choose or paste)",
                height=170,
                elem_id="xray-file",
            )
            answer = gr.HTML(elem_id="answer")
            example = gr.Button(
                "Try a drawing (as an upload it is referred)", size="sm", visible=DRAWN.exists()
            )
        with gr.Column(scale=3, min_width=300):
            viewer = gr.HTML(
                value=None,
                html_template=_read_page("viewer.html"),
                js_on_load=_read_page("viewer.js"),
                elem_id="viewer",
            )
            with gr.Row():
                method = gr.Dropdown(
                    [none, *titles], value=engine.default_method or NO_MAP, label="Attribution map",
                    min_width=220,
                )  # fmt: skip
                second = gr.Dropdown(
                    [none, *titles], value=NO_MAP, label="Beside it", min_width=220
                )
            offer = gr.Button(
                f"Show the map of {engine.title_of(engine.offered_method)}",
                size="sm",
                visible=engine.default_method is None,
            )
            gr.Markdown(MAP_NOTICE, elem_classes="small")
            with gr.Row():
                save_html = gr.Button("Report as a page", size="sm")
                save_pdf = gr.Button("Report as PDF", size="sm")
    saved = gr.JSON(visible=False)

    def analyse(path: str | None, drawn: bool = False) -> tuple[dict | None, str, dict | None]:
        if path is None:
            return None, "", None
        started = time.perf_counter()
        try:
            xray = engine.read(path)
            # The whole page can be tried with the drawing, whatever the gate says of it.
            prediction = engine.predict(xray, refuse=not drawn)
        except UserError as error:  # in the place of the answer, where it stays
            return None, to_error(str(error)), None
        seconds = time.perf_counter() - started
        text = answer_to_html(prediction, engine.predictor, engine.reports, seconds)
        found = {"xray": xray, "prediction": prediction, "shown": to_data_uri(xray.image)}
        return found, text, {"image": found["shown"], "maps": []}

    def explain(found: dict | None, first: str, other: str) -> dict | None:
        if found is None:
            return None
        wanted = [one for one in dict.fromkeys((first, other)) if one != NO_MAP]
        if found["prediction"].decision == "REFUSED":
            wanted = []
        maps = []
        for name in wanted:
            made = engine.attribute(found["xray"].image, name)
            said = (f"{engine.title_of(name)}.", engine.sentences.get(name), *made.warnings)
            title = " ".join(filter(None, said))
            maps.append({"title": title, "source": map_to_data_uri(made.values)})
        return {"image": found["shown"], "maps": maps}

    def report(found: dict | None, first: str, kind: str) -> dict[str, str]:
        import base64

        if found is None:
            raise UserError("Upload a chest X-ray first.")
        image, prediction = found["xray"].image, found["prediction"]
        with_map = first != NO_MAP and prediction.decision != "REFUSED"
        values = engine.attribute(image, first).values if with_map else None
        arguments = (engine, prediction, image, values, first if with_map else None)
        if kind == "pdf":
            coded = base64.b64encode(case_report.to_pdf(*arguments)).decode()
            return {"name": "xray-report.pdf", "kind": "application/pdf", "base64": coded}
        text = case_report.to_html(*arguments)
        return {"name": "xray-report.html", "kind": "text/html", "text": text}

    private = {"api_visibility": "private", "show_progress": "minimal"}
    work = {"concurrency_id": "page", "concurrency_limit": engine.limits.requests}
    for event in (file.upload, file.clear):
        event(analyse, file, [held, answer, viewer], **private, **work).then(
            explain, [held, method, second], viewer, **private, **work
        )
    example.click(
        lambda: analyse(str(DRAWN), drawn=True), None, [held, answer, viewer], **private,
        **work,
    ).then(explain, [held, method, second], viewer, **private, **work)  # fmt: skip
    offer.click(lambda: engine.offered_method, None, method, **private).then(
        explain, [held, method, second], viewer, **private, **work
    )
    for choice in (method, second):
        choice.input(explain, [held, method, second], viewer, **private, **work)
    for button, kind in ((save_html, "html"), (save_pdf, "pdf")):
        button.click(
            lambda found, first, kind=kind: report(found, first, kind),
            [held, method],
            saved,
            **private,
            **work,
        ).success(None, saved, None, js=SAVE, **private)
    return answer


def _add_what_if(engine: Engine, held: gr.State, tab: gr.Tab, shown: gr.HTML) -> None:
    gr.Markdown(WHAT_IF)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            masked = gr.HTML(
                value=None,
                html_template=_read_page("mask.html"),
                js_on_load=_read_page("mask.js"),
                elem_id="mask",
            )
        with gr.Column(scale=2, min_width=300):
            result = gr.HTML(elem_id="what-if")
            border = gr.Slider(0, 40, 0, step=1, label="Hidden border, % of each side")
            fill = gr.Radio(list(FILLS), value=FILLS[0], label="Hidden by")
            with gr.Accordion("Hidden part, without a mouse", open=False):
                sides = [
                    gr.Slider(0, 100, 0, step=1, label=f"{name}, % of the side")
                    for name in ("Left", "Top", "Right", "Bottom")
                ]
            clear = gr.Button("Show all again", size="sm")

    def compute(found: dict | None, share: float, how: str, *box: float) -> tuple[str, dict | None]:
        if found is None or found["prediction"].probability is None:
            text = "Upload an X-ray under “Image” first." if found is None else (
                "The model does not take this for a chest X-ray."
            )  # fmt: skip
            return f"<p>{text}</p>", None
        left, top, right, bottom = (one / 100 for one in box)
        part = (left, top, right, bottom) if right > left and bottom > top else None
        image = mask(found["xray"].image, share / 100, part, how)
        before = found["prediction"].probability
        after = before
        if share or part:
            # The gate is left out: a hidden part makes any image unlike the training images.
            masked_xray = replace(found["xray"], image=image)
            after = engine.predict(masked_xray, refuse=False).probability
        point = engine.predictor.operating_point
        scales = "".join(
            f"<h4>{title}</h4>"
            f"{draw_scale(value, point.threshold, point.low, point.high, 'Probability')}"
            for title, value in (("As it is", before), ("With the hidden part", after))
        )
        text = f"<p><b>{describe_change(before, after, point.threshold)}</b></p>"
        return f'<div class="answer">{text}{scales}</div>', {"image": to_data_uri(image, 900)}

    def drag(event: gr.EventData, found: dict | None, share: float, how: str):
        box = [round(100 * float(one), 1) for one in event.box]
        return (*box, *compute(found, share, how, *box))

    inputs = [held, border, fill, *sides]
    work = {"api_visibility": "private", "show_progress": "minimal", "concurrency_id": "page"}
    masked.select(drag, [held, border, fill], [*sides, result, masked], **work)
    for event in (border.release, fill.input, *(one.release for one in sides), tab.select,
                  shown.change):  # fmt: skip
        event(compute, inputs, [result, masked], **work)
    clear.click(
        lambda found, how: (0, 0, 0, 0, 0, *compute(found, 0, how, 0, 0, 0, 0)),
        [held, fill],
        [border, *sides, result, masked],
        **work,
    )


def _add_batch(engine: Engine) -> None:
    limits = engine.limits
    gr.Markdown(BATCH.format(batch=limits.batch))
    files = make_upload(
        file_count="multiple", height=170, label="X-rays or zip files", elem_id="batch-files"
    )
    with gr.Row():
        run = gr.Button("Score them", variant="primary")
        save = gr.Button("Save as CSV")
    table = gr.HTML(elem_id="batch")
    rows, saved = gr.State(None, time_to_live=1800), gr.JSON(visible=False)

    def score(paths: list[str] | None):
        if not paths:
            raise UserError("Upload X-rays or a zip file of them first.")
        found = []
        for some in engine.score_batch(paths):
            found += some
            yield to_table(found, done=False), None
        yield to_table(found), to_csv(found)

    def to_file(text: str | None) -> dict[str, str]:
        if not text:
            raise UserError("Score a batch first.")
        return {"name": "xrays.csv", "kind": "text/csv", "text": text}

    def guarded(paths: list[str] | None):
        try:
            yield from score(paths)
        except UserError as error:
            yield to_error(str(error)), None

    private = {"api_visibility": "private"}
    run.click(guarded, files, [table, rows], concurrency_id="batch", concurrency_limit=1, **private)
    save.click(to_file, rows, saved, **private).success(None, saved, None, js=SAVE, **private)
