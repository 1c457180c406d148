"""build_demo: the page and its endpoints; the package `demo` alone imports gradio."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from pneumonia_hf.compat.gradio import SentenceBlocks
from pneumonia_hf.demo.about import describe_model
from pneumonia_hf.demo.batch_page import add_batch
from pneumonia_hf.demo.endpoints import add_endpoints
from pneumonia_hf.demo.engine import Engine
from pneumonia_hf.demo.examples import list_examples
from pneumonia_hf.demo.guard import Guard
from pneumonia_hf.demo.limits import Limits, read_prevalence, read_setting
from pneumonia_hf.demo.page_files import read_page
from pneumonia_hf.demo.viewer import add_viewer
from pneumonia_hf.inference.predictor import Predictor

# Nothing else stands before the X-ray.
HEADER = """
<div class="slim">
<h1>Pneumonia in chest X-rays</h1>
<p>Reads one frontal chest X-ray, and says when it is unsure.</p>
<span class="chip" title="Not for diagnosis. It makes errors, above all on
X-rays unlike its training data.">Research only: not a medical device</span>
<nav aria-label="About">{links}</nav>
</div>
"""


def launch_options(limits: Limits, login: str | None = None) -> dict[str, Any]:
    """Return the keyword arguments for `launch`: a page of its own parts, guarded and bounded.

    `login` is `user:password`; with it, every route wants it.
    """
    guard = Middleware(Guard, login=login, uploads=get_upload_folder())
    return {
        "theme": _make_theme(),
        "css": read_page("page.css", "answer.css", "batch.css"),
        "max_file_size": limits.upload_mb * 10**6,
        "state_session_capacity": limits.sessions,
        "app_kwargs": {"middleware": [guard]},
        "ssr_mode": False,
        "run_history": False,
        "enable_monitoring": False,
        "footer_links": ["api", "settings"],
    }


def _make_theme() -> gr.themes.Base:
    """Return our theme: blue alone as the accent, edges around cards, contrasts of WCAG AA."""
    # System fonts: the page loads nothing from another server.
    theme = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="sm",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    edge = {"block_border_color": "*neutral_300", "block_border_color_dark": "*neutral_600"}
    link = {f"link_text_color{state}_dark": "*primary_300"
            for state in ("", "_hover", "_active", "_visited")}  # fmt: skip
    return theme.set(
        **edge,
        **link,
        block_border_width="1px",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
        color_accent="*primary_700",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        link_text_color="*primary_700",
    )


def build_demo(
    predictor: Predictor,
    limits: Limits | None = None,
    examples: Path | None = None,
    prevalence: float | None = None,
) -> gr.Blocks:
    """Return the app for one model; `.launch(**launch_options(limits))` serves it.

    `examples` is a folder of images that are offered in the place of those built in; `prevalence`
    is as of `Engine`, and read from the environment if not given. The endpoints are those
    of `add_endpoints`; docs/space.md describes them.
    """
    limits = limits or Limits.from_environment()
    engine = Engine(predictor, limits, prevalence or read_prevalence())
    kept = limits.kept_seconds
    with SentenceBlocks(
        title="Pneumonia in chest X-rays",
        analytics_enabled=False,
        delete_cache=(max(1, kept // 4), kept),
    ) as demo:
        add_endpoints(engine)  # first: an event of the page would take one of their names
        gr.HTML(HEADER.format(links=_list_links(predictor)), elem_id="header")
        batch = gr.State(None, time_to_live=1800)  # the visitor's last one
        with gr.Tabs():
            with gr.Tab("X-ray"):
                gr.HTML(read_page("batch.html"), elem_id="batch-bar", js_on_load=None,
                        apply_default_css=False)  # fmt: skip
                add_viewer(engine, list_examples(engine, examples), batch)
            with gr.Tab("Batch"):
                add_batch(engine, batch)
            with gr.Tab("About"):
                gr.Markdown(describe_model(engine), elem_id="about")
    return demo.queue(max_size=limits.queue)


def _list_links(predictor: Predictor) -> str:
    """Return links to the model card, the reports and, in a Space, the code."""
    local = Path(predictor.name).expanduser().is_dir()
    hub = "https://huggingface.co"
    card = "#about" if local else f"{hub}/{predictor.name.partition('@')[0]}"
    links = {"Model card": card, "Reports": "#about"}
    if space := read_setting("SPACE_ID"):
        links["Code"] = f"{hub}/spaces/{space}/tree/main"
    return "".join(
        f'<a href="{html.escape(address)}">{name}</a>' for name, address in links.items()
    )
