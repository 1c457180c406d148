"""The findings of an audit -> audit.json, audit.md, audit.html and figures in one folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pneumonia_hf import __version__
from pneumonia_hf.audit.dataset import VERDICTS, Finding, Xrays
from pneumonia_hf.audit.run import CHECKS
from pneumonia_hf.audit.shortcuts import SHORTCUT_WARN
from pneumonia_hf.data.patients import describe_patients
from pneumonia_hf.labels import LABELS
from pneumonia_hf.reporting import page as reporting
from pneumonia_hf.reporting.drawing import COLOUR, MARK, draw_images, plot_intervals
from pneumonia_hf.reporting.write import write_page
from pneumonia_hf.statistics.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

TILE = 320  # pixels of a thumbnail
COLUMNS = 6
MOST_LETTERS = 24  # of a line above a thumbnail
AUDIT_FILES = ("audit.json", "audit.md", "audit.html")
THUMBNAILS = "thumbnails"


def write_audit(
    findings: dict[str, Finding],
    xrays: Xrays,
    folder: Path,
    name: str = "data",
    thumbnails: bool = True,
    draw_augmentation: Callable[[Tensor], Figure] | None = None,
) -> None:
    """Write the findings of `audit_sources`: audit.json, audit.md, audit.html and figures.

    Without `thumbnails` the report shows no X-rays and can be published. `draw_augmentation`
    draws a sheet of augmented images, given uint8 [N, 1, H, W]; by default there is none.

    Raises:
        UserError: the folder cannot be made.
    """
    sections = [_summarise(findings, xrays)]
    for check, one in findings.items():
        meaning = (CHECKS[check].__doc__ or "").splitlines()[0]
        body: list[Any] = [f"{meaning} **{one.verdict}**: {one.text}"]
        if one.examples:
            body += [
                f"The first {len(one.examples)} of {max(one.count, len(one.examples))}:",
                "\n".join(f"- {_describe_example(example)}" for example in one.examples),
            ]
        if thumbnails and one.shown:
            draw = partial(draw_sheet, xrays, one)
            body.append(reporting.Figure(f"{THUMBNAILS}/{check}", draw, True, has_xrays=True))
        sections.append(reporting.Section(check, tuple(body)))
    last = ["All files of the findings are in `audit.json`."]
    if thumbnails and len(xrays) and draw_augmentation is not None:
        rows = np.linspace(0, len(xrays) - 1, min(3, len(xrays))).astype(int)
        draw = partial(draw_augmentation, xrays.images.pixels(rows))
        text = "Some of these images, augmented as in training (see `preview_augmentation.py`)."
        sheet = reporting.Figure(f"{THUMBNAILS}/augmentation", draw, True, has_xrays=True)
        sections.append(reporting.Section("Augmentation", (text, sheet)))
    elif not thumbnails:
        last.insert(0, "Thumbnails were left out of this report.")
    sections.append(reporting.Section("Files", tuple(last), to_json(findings)))
    older = [one.relative_to(folder) for one in (folder / THUMBNAILS).glob("*.png")]
    write_page(reporting.Page(f"Audit of {name}", sections), folder, "audit", older)


def to_json(findings: dict[str, Finding]) -> dict[str, Any]:
    """Return the contents of audit.json: each check's verdict, count, text, examples and more."""
    return {
        name: {
            "verdict": one.verdict,
            "count": one.count,
            "text": one.text,
            "examples": list(one.examples),
            **one.more,
        }
        for name, one in findings.items()
    }


def format_verdicts(findings: dict[str, Finding]) -> str:
    """Return a line for each check, and the number of checks with each verdict."""
    lines = [f"{one.verdict:5} {name}: {one.text}" for name, one in findings.items()]
    verdicts = [one.verdict for one in findings.values()]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in VERDICTS)
    return "\n".join([*lines, f"{len(findings)} checks: {counts}."])


def _summarise(findings: dict[str, Finding], xrays: Xrays) -> reporting.Section:
    splits = ", ".join(
        f"{split} {int(np.sum(xrays.split == number))}" for number, split in enumerate(xrays.splits)
    )
    patients = describe_patients(len(np.unique(xrays.patient)), xrays.by_file_name)
    marks = {verdict: f"**{verdict}**" for verdict in VERDICTS[1:]}
    rows = [
        [check, marks.get(one.verdict, one.verdict), one.count, one.text]
        for check, one in findings.items()
    ]
    body = (
        f"{len(xrays)} readable images ({splits}), of {patients}. By `audit_data.py` of "
        f"pneumonia-hf {__version__}.",
        "`pass`: no action is needed. `warn`: check the examples. `fail`: metrics on this data "
        "are not credible.",
        reporting.Table(["check", "verdict", "count", "finding"], rows),
        reporting.Figure("overview", partial(draw_overview, findings, xrays), is_wide=True),
    )
    return reporting.Section("", body)


def _describe_example(example: dict[str, Any]) -> str:
    texts = []
    for key, value in example.items():
        value = ", ".join(map(str, value)) if isinstance(value, list) else value
        key = {"part": "split", "parts": "splits"}.get(key, key)
        texts.append(f"`{value}`" if key in ("file", "files", "patient") else f"{key} {value}")
    return "; ".join(texts)


def draw_sheet(xrays: Xrays, finding: Finding) -> Figure:
    """Return thumbnails of a finding's images, with file names and captions."""
    images = []
    for row, caption in finding.shown:
        image = Image.fromarray(xrays.images.pixels([row])[0, 0].numpy())
        image = image.resize([int(xrays.images.facts(side)[row]) for side in ("width", "height")])
        image.thumbnail((TILE, TILE))  # in the X-ray's own shape
        (name,) = xrays.files([row])
        images.append((image, "\n".join(map(_fit, (name.rsplit("/", 1)[-1], caption)))))
    return draw_images([images[at : at + COLUMNS] for at in range(0, len(images), COLUMNS)])


def _fit(text: str) -> str:
    """Shorten a text in its middle to the width of a thumbnail."""
    half = MOST_LETTERS // 2 - 1
    return text if len(text) <= MOST_LETTERS else f"{text[:half]}..{text[-half:]}"


def draw_overview(findings: dict[str, Finding], xrays: Xrays) -> Figure:
    """Return a figure of brightness and shape by class, and of the shortcuts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    brightness, shape, shortcuts = figure.subplots(1, 3)
    mean = xrays.images.facts("mean")
    ratio = xrays.images.facts("width") / np.maximum(xrays.images.facts("height"), 1)
    for axes, values, edges, title in (
        (brightness, mean, np.linspace(0, 255, 52), "Mean gray level"),
        (shape, np.clip(ratio, 0.4, 2.5), np.linspace(0.4, 2.5, 43), "Width to height"),
    ):
        for label, (name, colour) in enumerate(zip(LABELS, (COLOUR, MARK), strict=True)):
            of_class = values[xrays.label == label]
            if len(of_class):
                weights = np.full(len(of_class), 1 / len(of_class))
                axes.hist(of_class, edges, weights=weights, color=colour, alpha=0.55, label=name)
        axes.set_title(title)
        axes.set_ylabel("share of the class")
        axes.legend()
    areas = findings["shortcuts"].more.get("auroc", {})
    found = {name: Interval(one["auroc"], one["low"], one["high"]) for name, one in areas.items()}
    plot_intervals(shortcuts, [(name, one, False) for name, one in found.items()])
    shortcuts.axvline(0.5, color="grey", linestyle=":")
    shortcuts.axvline(SHORTCUT_WARN, color="grey", linewidth=0.5)
    shortcuts.set_xlim(min([0.35, *(one.low - 0.02 for one in found.values())]), 1.02)
    shortcuts.set_title("AUROC from each alone, 95% interval")
    return figure
