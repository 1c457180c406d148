"""Section: published results on the data of a report, where it is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.reporting.numbers import to_text
from pneumonia_hf.reporting.page import Section, Table
from pneumonia_hf.statistics.metrics import METRICS

TITLE = "Against others"
COMPARED = ("auroc", "accuracy", "sensitivity", "specificity")


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return what others report on the same data, of the file `config.published`."""
    path = evaluation.config.published
    found = path and find_published(path, numbers["NORMAL"], numbers["PNEUMONIA"])
    if not found:
        return Section(TITLE, (), {"published": None})
    own = [evaluation.model, *(to_text(evaluation.metrics[name]) for name in COMPARED)]
    rows = [
        [
            one["model"],
            *("" if one[name] is None else f"{one[name]:.3f}" for name in COMPARED),
            one["source"],
        ]
        for one in found["results"]
    ]
    body = (
        f"The numbers of images are those of {found['data']}. {found['note']}",
        Table(
            ["model", *(METRICS[name].title for name in COMPARED), "source"],
            [[*own, "this report"], *rows],
        ),
    )
    return Section(TITLE, body, {"published": found})


def find_published(path: Path, normals: int, pneumonias: int) -> dict[str, Any] | None:
    """Return what others report on data with these numbers of images, or None.

    It has `data`, the name of the data, a `note`, and `results`: of each `model` its `source` and
    COMPARED, None where it is not given.

    Raises:
        UserError: the file cannot be read.
    """
    import yaml

    keys = ("model", *COMPARED, "source")
    try:
        for one in yaml.safe_load(path.read_text(encoding="utf-8"))["sets"]:
            if (one["NORMAL"], one["PNEUMONIA"]) == (normals, pneumonias):
                results = [{key: each[key] for key in keys} for each in one["results"]]
                return {"data": one["name"], "note": " ".join(one["note"].split()),
                        "results": results}  # fmt: skip
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold published results as eval_reports/published.yaml does: {error}."
        ) from error
    return None
