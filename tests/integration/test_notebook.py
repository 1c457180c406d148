"""The quickstart notebook: executed as a reader would, on drawn images and a loopback Hub."""

import asyncio
import base64
import io
import json
import os
import re

import nbformat
import numpy as np
import pytest
from helpers import ROOT, draw_xray, save_tiny_body
from hub_server import LocalHub
from PIL import Image

from pneumonia_hf.audit.run import CHECKS
from pneumonia_hf.models.model_folder import CURVES_FILE, MODEL_FILES, NOT_IN_EACH, REPORTS_FILE
from pneumonia_hf.reporting.numbers import read_interval, to_text

EXPECTED_FILES = set(MODEL_FILES) - NOT_IN_EACH | {REPORTS_FILE, CURVES_FILE}
NOTEBOOK = ROOT / "train_scripts" / "quickstart.ipynb"
# One core: tiny models gain nothing from more, and lose much where cores are busy.
ONE_CORE = "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def set_parameters(notebook, **parameters) -> None:
    """Put a cell behind the one tagged `parameters`, as papermill does."""
    (place,) = (
        place
        for place, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    )
    known = {line.split(" = ")[0] for line in notebook.cells[place].source.splitlines()}
    assert parameters.keys() <= known
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    lines += [ONE_CORE] if hasattr(os, "sched_setaffinity") else []
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))


@pytest.fixture(scope="module")
def executed(tmp_path_factory, xray_folder):
    """The executed notebook, the folder it worked in, and what came to the Hub."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("quickstart")
    draw_xray(7, ill=True).save(folder / "own.png")
    notebook = read_notebook()
    set_parameters(
        notebook,
        DATA=str(xray_folder),
        BACKBONE="convnextv2-tiny",
        WEIGHTS=str(save_tiny_body("convnextv2-tiny", folder / "body")),
        IMAGE_SIZE=64,
        EPOCHS=3,
        LEARNING_RATE=1e-2,
        OUTPUT=str(folder / "model"),
        FILM=str(folder / "own.png"),
        PUSH_TO="me/quickstart",
    )
    with LocalHub() as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_of_me",
            "HF_HOME": str(folder / "hf_home"),
            "IPYTHONDIR": str(folder / "ipython"),
            "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(folder / "matplotlib")),
        }
        client = NotebookClient(
            notebook,
            timeout=240,
            startup_timeout=120,
            kernel_name="python3",
            resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        )
        # Not client.execute(), which leaves an event loop open for a later test to warn of.
        asyncio.run(client.async_execute(env=os.environ | environment))
    return notebook, folder, hub.repositories


def outputs_of(notebook, name) -> list:
    (cell,) = (cell for cell in notebook.cells if cell.id == name)
    return cell.outputs


def text_of(notebook, name) -> str:
    """Return all that a cell said, as text."""
    summary = []
    for output in outputs_of(notebook, name):
        data = output.get("data", {})
        summary += [output.get("text", ""), data.get("text/markdown", data.get("text/plain", ""))]
    return "\n".join(summary)


def images_of(notebook, name) -> list[np.ndarray]:
    """Return the images that a cell showed, [H, W, 3] each."""
    coded = [output.get("data", {}).get("image/png") for output in outputs_of(notebook, name)]
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB"))
        for one in coded
        if one
    ]


@pytest.mark.slow
def test_every_cell_runs_and_ends_with_a_finished_model(executed):
    notebook, folder, _ = executed
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [one for cell in code for one in cell.outputs if one.output_type == "error"]
    held = {path.name for path in (folder / "model").iterdir()}
    assert held >= EXPECTED_FILES
    run = json.loads((folder / "model" / "run.json").read_text())
    assert run["training"]["epochs_run"] == 3
    assert run["model"]["backbone"] == "convnextv2-tiny"
    # The Trainer's own live table, a row an epoch.
    (table,) = (
        one.data["text/html"]
        for one in outputs_of(notebook, "run")
        if "Validation Loss" in one.get("data", {}).get("text/html", "")
    )
    assert table.count("<tr>") == 3


@pytest.mark.slow
def test_notebook_shows_the_verdict_of_every_check(executed):
    table = outputs_of(executed[0], "check")[-1].data["text/html"]
    for check in CHECKS:
        assert f"<th>{check}</th>" in table
    assert "<td>pass</td>" in table


@pytest.mark.slow
def test_numbers_shown_are_those_of_the_report_and_the_card(executed):
    notebook, folder, _ = executed
    report = json.loads((folder / "model-report" / "report.json").read_text())
    run = json.loads((folder / "model" / "run.json").read_text())
    assert report["n"] == run["data"]["parts"]["test"]["images"]
    assert report["seen_in_training"] == report["seen_in_validation"] == 0
    area = report["metrics"]["auroc"]
    shown = text_of(notebook, "score")
    # Fewer than five drawn patients of a class: an area without an interval.
    assert f"| AUROC | {to_text(read_interval(area))} |" in shown
    (kept,) = json.loads((folder / "model" / "reports.json").read_text())
    assert kept["metrics"] == report["metrics"]


@pytest.mark.slow
def test_images_are_shown_and_the_heat_maps_have_colour(executed):
    notebook, folder, _ = executed
    figures = [p for p in (folder / "model-report").glob("*.png") if p.stem != "examples"]
    assert {"confusion_matrix", "roc_curve", "calibration"} <= {p.stem for p in figures}
    for name, count in {
        "overview": 1,
        "preview": 1,
        "curves": 1,
        "figures": len(figures),
        "one-heat": 1,
    }.items():
        images = images_of(notebook, name)
        assert len(images) == count, name
        assert all(np.ptp(image) > 100 for image in images), name
    xrays = images_of(notebook, "right-and-wrong")
    summary = text_of(notebook, "right-and-wrong")
    counts = [
        int(line.split(", ")[-1].split()[0]) for line in summary.splitlines() if " X-rays" in line
    ]
    assert len(counts) == 4 and len(xrays) == sum(count > 0 for count in counts)
    report = json.loads((executed[1] / "model-report" / "report.json").read_text())
    assert sum(counts) == report["n"]
    assert any(np.ptp(image, axis=2).max() > 20 for image in xrays)  # X-rays alone are gray


@pytest.mark.slow
def test_prediction_of_an_own_film_is_the_predictors(executed):
    from pneumonia_hf import Predictor, read_xray

    notebook, folder, _ = executed
    predictor = Predictor.from_pretrained(folder / "model")
    expected = predictor.predict(read_xray(folder / "own.png"))
    assert f"label={expected.label!r}" in text_of(notebook, "one")
    shown = re.search(r"probability=([\d.e-]+)", text_of(notebook, "one"))
    assert float(shown[1]) == pytest.approx(expected.probability, abs=1e-5)


@pytest.mark.slow
def test_push_sends_the_model_with_its_measured_card_in_private(executed):
    notebook, folder, repositories = executed
    repository = repositories["me/quickstart"]
    sha, files = repository.commits[-1]
    assert repository.private
    (wheel,) = (name for name in files if name.endswith(".whl"))
    own = {".gitattributes", "handler.py", "requirements.txt", wheel}
    assert files.keys() == EXPECTED_FILES | own
    card = (folder / "model" / "README.md").read_text().replace("THIS_REPOSITORY", "me/quickstart")
    assert files["README.md"].decode() == card
    report = json.loads((folder / "model-report" / "report.json").read_text())
    assert f"{report['metrics']['auroc']['value']:.3f}" in files["README.md"].decode()
    assert f"/me/quickstart/commit/{sha}" in text_of(notebook, "upload")


def test_committed_notebook_is_clean_and_names_no_machine():
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)  # cells have ids
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert cell.metadata.keys() <= {"tags"}, cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
            assert len(cell.source.splitlines()) <= 25, cell.id
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "not a medical device" in text
    for place in ("/home/", "/tmp/", "/work/", "/root/"):
        assert place not in text
