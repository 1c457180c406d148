"""The endpoints for programs: /predict, /explain, /predict_batch and /model_info."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr

from pneumonia_hf import __version__
from pneumonia_hf.compat.gradio import hide_from_mcp, make_upload
from pneumonia_hf.demo.answers import find_commit, name_model
from pneumonia_hf.demo.engine import NO_MAP
from pneumonia_hf.demo.limits import ASSUMED_PREVALENCE
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.attribution import overlay
from pneumonia_hf.inference.predictor import FIELDS
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.run_manifest import read_manifest

if TYPE_CHECKING:
    from PIL import Image

    from pneumonia_hf.demo.engine import Engine


def add_endpoints(engine: Engine) -> None:
    """Add the endpoints to the blocks that are being built; they have no visible parts."""
    methods = Literal[(NO_MAP, *engine.methods)]  # the names in the description of the API

    def predict(image: str, method: methods = NO_MAP) -> tuple[dict[str, Any], Any]:
        """Decide whether one frontal chest X-ray shows pneumonia.

        Args:
            image: a JPEG, PNG, TIFF, BMP, WebP or DICOM file (MCP: as data:...;base64,...).
            method: the attribution method whose overlay is returned, or "none".

        Returns:
            A dictionary with label, probability (where half of all images show pneumonia),
            threshold, decision (PNEUMONIA, NORMAL, REFER or REFUSED), warnings, the distance
            from the training images and other_abnormal, the probability of an abnormal image
            without pneumonia; and the overlay, null without a method or if REFUSED.
        """
        read = engine.read(image)
        prediction = engine.predict(read)
        found = prediction.to_dict()
        if method in (NO_MAP, None) or prediction.decision == "REFUSED":
            return found, None
        attribution_map = engine.attribute(read.image, method)
        found["warnings"] += attribution_map.warnings
        return found, overlay(read.image, attribution_map.values)

    def explain(
        image: str, method: methods = engine.offered_method
    ) -> tuple[dict[str, Any], Image.Image]:
        """Show where in one chest X-ray the score for pneumonia comes from.

        It does not locate disease. The map is made whatever the decision.

        Args:
            image: a JPEG, PNG, TIFF, BMP, WebP or DICOM file (MCP: as data:...;base64,...).
            method: the attribution method.

        Returns:
            A dictionary with method, verdict (pass, fail or not tested, by the model's reports),
            evidence (how often the method pointed at disease there) and warnings; and the X-ray
            with the map laid over it.
        """
        if method == NO_MAP:
            raise UserError(f"/explain needs a method; choose from {engine.methods}.")
        method = method or engine.offered_method  # null, from a program that sends all fields
        read = engine.read(image).image
        found = engine.attribute(read, method)
        verdict = engine.verdicts.get(method, "not tested")
        described = {
            "method": method,
            "verdict": verdict,
            "evidence": engine.sentences.get(method, ""),
            "warnings": found.warnings,
        }
        return described, overlay(read, found.values)

    def predict_batch(files: list[str]) -> list[dict[str, Any]]:
        """Decide on many chest X-rays.

        Args:
            files: image files, and zip files of them.

        Returns:
            A dictionary for each image, in order: file, error (null, or why it cannot be read) and
            the fields of /predict.
        """
        if not files:
            raise UserError("There is no image; upload X-rays or a zip file of them.")
        empty = dict.fromkeys(FIELDS) | {"warnings": []}
        return [
            {"file": row.file, "error": row.fault or None}
            | (row.prediction.to_dict() if row.prediction else empty)
            for rows in engine.score(engine.open_batch(files))
            for row in rows
        ]

    # No MCP tool: gradio's conversion does not find the files in a list.
    hide_from_mcp(predict_batch)

    def model_info() -> dict[str, Any]:
        """Describe the model: name, threshold, methods with their verdicts, reports and limits."""
        return describe_model(engine)

    def add(function: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> None:
        options = options or {
            "concurrency_id": "requests", "concurrency_limit": engine.limits.requests,
        }  # fmt: skip
        gr.Button(visible=False).click(
            function, inputs, outputs, api_name=function.__name__, **options
        )

    def choose(method: str) -> gr.Dropdown:
        return gr.Dropdown([NO_MAP, *engine.methods], value=method, visible=False, label="method")

    def describe(label: str) -> list[Any]:
        return [gr.JSON(visible=False, label=label), gr.Image(visible=False, format="png",
                                                              label="overlay")]  # fmt: skip

    # Without file types: gradio logs a traceback for each file of another one, and the engine says
    # in a sentence what can be read.
    file = {"visible": False, "label": "image"}
    add(predict, [make_upload(**file), choose(NO_MAP)], describe("result"))
    add(explain, [make_upload(**file), choose(engine.offered_method)], describe("explanation"))
    files = make_upload(file_count="multiple", visible=False, label="files")
    results = gr.JSON(visible=False, label="results")
    add(predict_batch, files, results, concurrency_id="batch", concurrency_limit=1)
    add(model_info, None, gr.JSON(visible=False, label="model"))


def describe_model(engine: Engine) -> dict[str, Any]:
    """Return what a program should know of the model, without local paths."""
    point = engine.predictor.operating_point
    return {
        "model": name_model(engine.predictor),
        "commit": find_commit(engine.predictor),  # of the Hub
        "backbone": read_manifest(engine.predictor.path).backbone,
        "version": __version__,
        "labels": list(LABELS),
        "threshold": point.threshold,
        "refer_low": point.low,
        "refer_high": point.high,
        "calibrated_for_prevalence": ASSUMED_PREVALENCE,
        "methods": engine.methods,
        "method_verdicts": engine.verdicts,
        "default_method": engine.default_method,
        "offered_method": engine.offered_method,
        "has_gate": any(one.gate is not None for one in engine.predictor.networks),
        "reports": [
            {"data": one["data"], "n": one["n"], "auroc": one["metrics"]["auroc"]}
            for one in engine.reports
        ],
        "limits": asdict(engine.limits),
        "notice": "Research software, not a medical device.",
    }
