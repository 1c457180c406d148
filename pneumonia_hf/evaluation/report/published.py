"""Published results on the data of a report, where it is recognised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pneumonia_hf.errors import UserError


@dataclass(frozen=True)
class PublishedResult:
    """What others report on the same images; None: not given."""

    model: str
    auroc: float | None
    accuracy: float | None
    sensitivity: float | None
    specificity: float | None
    source: str


@dataclass(frozen=True)
class Published:
    """Published results on one data set."""

    data: str
    note: str
    results: tuple[PublishedResult, ...]


def find_published(path: Path, normals: int, pneumonias: int) -> Published | None:
    """Return the published results on data with these numbers of images, or None.

    Raises:
        UserError: the file cannot be read.
    """
    import yaml

    try:
        sets = yaml.safe_load(path.read_text(encoding="utf-8"))["sets"]
        for one in sets:
            if (one["NORMAL"], one["PNEUMONIA"]) == (normals, pneumonias):
                results = tuple(PublishedResult(**each) for each in one["results"])
                return Published(one["name"], " ".join(one["note"].split()), results)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold published results as eval_reports/published.yaml does: {error}."
        ) from error
    return None
