"""build_demo: the web page and its endpoint; the only module that imports gradio."""

from __future__ import annotations

import html
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from pneumonia_hf.errors import UserError
from pneumonia_hf.files import read_json
from pneumonia_hf.imaging.read import IMAGE_SUFFIXES, read_xray
from pneumonia_hf.inference.attribution import attribute, methods_for, overlay
from pneumonia_hf.inference.predictor import Prediction, Predictor
from pneumonia_hf.models.model_card import find_misfit
from pneumonia_hf.models.model_folder import REPORTS_FILE, RUN_FILE

NOTICE = (
    "**Research software, not a medical device.** Do not use it to diagnose or rule out disease. "
    "It makes errors, above all on X-rays unlike its training data."
)
MAP_NOTICE = (
    "Bright places raised the score for pneumonia. They do **not** locate disease: such maps agree "
    "poorly with radiologists. Full brightness is the value for a typical pneumonia of the "
    "validation split, so a dark map means that the model found little."
)
CALIBRATED = "Probability of pneumonia, calibrated for a population in which half have it:"
UNCALIBRATED = "Score for pneumonia (0 to 1, not a reliable probability; see the model):"
COLOURS = {"PNEUMONIA": "#b3261e", "NORMAL": "#1b6e3c", "REFER": "#8a5a00", "REFUSED": "#5f6368"}
SHOWN_METRICS = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}
KEPT_SECONDS = 3600  # uploaded images are patient data: deleted after an hour
QUEUE_LENGTH = 32
# Keyword arguments for launch().
LAUNCH_OPTIONS: dict[str, Any] = {
    # System fonts: the page loads nothing from another server.
    "theme": gr.themes.Soft(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ),
    "css": "footer {opacity: .6} .verdict {font-size: 1.05rem}",
    "max_file_size": os.environ.get("MAX_FILE_SIZE", "50mb"),
    "ssr_mode": False,
}


def build_demo(predictor: Predictor) -> gr.Blocks:
    """Return the app for one model; `.launch(**LAUNCH_OPTIONS)` serves it.

    The endpoint `/predict` takes a file and a method of `methods_for`, and returns the fields of a
    `Prediction`, whose warnings include those of the attribution map, and the overlay.
    """
    methods, default = _choose_methods(predictor)
    misfits = [find_misfit(_reports_of(one)) for one in predictor.networks]
    meaning = UNCALIBRATED if any(misfits) else CALIBRATED

    def predict(image: str | None, method: str) -> tuple[dict[str, Any], Image.Image | None]:
        """Return the decision on one chest X-ray and its attribution map, null if REFUSED."""
        prediction, _, map_over_image = _analyse(predictor, image, method)
        return asdict(prediction), map_over_image

    def show(path: str | None, method: str) -> tuple[str, Image.Image | None, Image.Image | None]:
        if path is None:
            return "", None, None
        try:
            prediction, image, map_over_image = _analyse(predictor, path, method)
        except gr.Error as error:  # shown in place of the result, where it stays
            return f"<p><b>{html.escape(error.message)}</b></p>", None, None
        return _to_html(prediction, meaning), image, map_over_image

    # No share button: it would publish a patient's X-ray.
    shown = {"show_label": False, "interactive": False, "buttons": ["download", "fullscreen"]}
    with gr.Blocks(
        title="Pneumonia in chest X-rays", delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as demo:
        gr.Markdown("# Pneumonia in chest X-rays")
        gr.Markdown(NOTICE)
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                file = gr.File(
                    label="Frontal chest X-ray (JPEG, PNG, TIFF, DICOM)",
                    file_types=sorted(IMAGE_SUFFIXES),
                    height=170,
                )
                method = gr.Dropdown(methods, value=default, label="Attribution map")
                button = gr.Button("Analyse", variant="primary")
                gr.Markdown(_describe_model(predictor))
            with gr.Column(scale=2, min_width=320):
                verdict = gr.HTML(elem_classes="verdict")
                with gr.Row():
                    with gr.Column(min_width=240):
                        # Not labels, which would cover the markers in the X-ray's corner.
                        gr.Markdown("X-ray as the model reads it")
                        image = gr.Image(**shown)
                    with gr.Column(min_width=240):
                        gr.Markdown("Attribution map")
                        attribution_map = gr.Image(**shown)
                gr.Markdown(MAP_NOTICE)

        # One image at a time: captum hooks into the model that all requests share.
        alone = {"concurrency_id": "model", "concurrency_limit": 1}
        inputs, outputs = [file, method], [verdict, image, attribution_map]
        for event in (file.upload, file.clear, method.change, button.click):
            event(show, inputs, outputs, api_visibility="private", **alone)

        result, result_overlay = gr.JSON(visible=False), gr.Image(visible=False, format="png")
        gr.Button(visible=False).click(
            predict, inputs, [result, result_overlay], api_name="predict", **alone
        )
    return demo.queue(max_size=QUEUE_LENGTH)


def _analyse(
    predictor: Predictor, path: str | None, method: str
) -> tuple[Prediction, Image.Image, Image.Image | None]:
    if path is None:
        raise gr.Error("Upload a chest X-ray first.", print_exception=False)
    try:
        image = read_xray(path)
        prediction = predictor.predict(image)
        if prediction.decision == "REFUSED":
            return prediction, image, None
        found = attribute(predictor, image, method)
        prediction = replace(prediction, warnings=prediction.warnings + found.warnings)
        return prediction, image, overlay(image, found.values)
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _to_html(prediction: Prediction, meaning: str) -> str:
    """Return the decision, and the probability on a scale with the threshold marked."""
    colour = COLOURS[prediction.decision]
    warnings = "".join(f"<li>{html.escape(text)}</li>" for text in prediction.warnings)
    title = (
        f'<div><span style="background:{colour};color:white;border-radius:6px;padding:4px 12px;'
        f'font-size:1.4rem;font-weight:700">{prediction.decision}</span>'
    )
    if prediction.probability is None:
        return f"{title}<ul>{warnings}</ul></div>"
    at = f"left:{prediction.threshold:.1%}"
    scale = (
        f'<div style="position:relative;height:14px;border-radius:7px;background:#8884;'
        f'margin:10px 0 4px" role="img" aria-label="probability {prediction.probability:.3f}, '
        f'threshold {prediction.threshold:.3f}">'
        f'<div style="width:{prediction.probability:.1%};height:100%;border-radius:7px;'
        f'background:{colour}"></div>'
        f'<div style="position:absolute;top:-4px;bottom:-4px;{at};width:3px;'
        f'background:currentColor"></div></div>'
    )
    referred = (
        f"<p>A person must decide. The side of the threshold is {prediction.label}.</p>"
        if prediction.decision == "REFER"
        else ""
    )
    return (
        f"{title}{scale}<p>{meaning} <b>{prediction.probability:.3f}</b>; positive at or above "
        f"<b>{prediction.threshold:.3f}</b> (the mark on the bar).</p>"
        f"{referred}{f'<ul>{warnings}</ul>' if warnings else ''}</div>"
    )


def _choose_methods(predictor: Predictor) -> tuple[list[tuple[str, str]], str]:
    """Return the attribution methods with their titles, and the default.

    A title has the verdict of the model's reports, fail if any report says so. The default is the
    best by the first report that tested them, or else the first that did not fail.
    """
    tested = [one["faithfulness"] for one in _reports_of(predictor) if one.get("faithfulness")]
    verdicts: dict[str, str] = {}
    for found in tested:
        for one in found["results"]:
            if verdicts.get(one["method"]) != "fail":
                verdicts[one["method"]] = one["verdict"]
    supported = methods_for(predictor)
    titles = {"pass": " (passed its tests)", "fail": " (failed a test)"}
    choices = [
        (name.replace("_", " ") + titles.get(verdicts.get(name, ""), ""), name)
        for name in supported
    ]
    best = [found["best"] for found in tested if found["best"] in supported]
    rest = [name for name in supported if verdicts.get(name) != "fail"]
    return choices, (best or rest or supported)[0]


def _describe_model(predictor: Predictor) -> str:
    """Return the model's name and its reports, as its folder holds them."""
    if predictor.path is None:
        return f"**Model:** {predictor.name}"
    local = Path(predictor.name).expanduser().is_dir()  # visitors do not see local paths
    backbone = read_json(predictor.path / RUN_FILE, {}).get("model", {}).get("backbone")
    name = predictor.path.resolve().name if local else predictor.name
    lines = [f"**Model:** {name}{f' ({backbone})' if backbone else ''}", ""]
    reports = _reports_of(predictor)
    for report in reports:
        metrics = report["metrics"]
        values = ", ".join(
            f"{title} {metrics[key]['value']:.3f}"
            for key, title in SHOWN_METRICS.items()
            if metrics[key]["value"] is not None
        )
        low = metrics["auroc"]["low"]
        chance = " **This is no better than chance.**" if low is not None and low <= 0.5 else ""
        site = " (another site)" if report.get("external") else ""
        lines.append(f"- {report['data']}{site}, {report['n']} images: {values}.{chance}")
        if found := report.get("robustness"):
            gap, worst = found["shortcut_gap"]["value"], found["worst"]
            lines.append(
                f"  With another frame (the outer fifth) its AUROC falls by {gap:.3f}; worst "
                f"case {worst['auroc']:.3f} ({worst['name'].replace('_', ' ')})."
            )
    if misfit := find_misfit(reports):
        error = misfit["metrics"]["ece_balanced"]["value"]
        lines.append(
            f"\nIts probabilities are **not calibrated** for {misfit['data']}: the mean "
            f"error there is {error:.2f}."
        )
    return "\n".join(lines)


def _reports_of(predictor: Predictor) -> list[dict[str, Any]]:
    """Return the reports in the model's own folder."""
    return read_json(predictor.path / REPORTS_FILE, []) if predictor.path else []
