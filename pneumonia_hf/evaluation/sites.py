"""The same model on other sites: its scores side by side, and the drop with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.folder_source import list_others
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import hashes_by_member
from pneumonia_hf.evaluation.intervals import Interval, draw_patients, percentile_interval
from pneumonia_hf.evaluation.metrics import METRICS
from pneumonia_hf.evaluation.scores import Scores, score_images
from pneumonia_hf.evaluation.subgroups import Others, score_other_classes
from pneumonia_hf.files import expand

if TYPE_CHECKING:
    from datasets import Dataset

    from pneumonia_hf.evaluation.steps import Steps
    from pneumonia_hf.inference.predictor import Predictor

COMPARED = ("auroc", "accuracy", "sensitivity", "specificity", "ece_balanced")
SEEN = ("train", "validation", "unlabelled")  # splits whose images cannot be external


@dataclass(frozen=True)
class SiteResult:
    """A model's results on the images of one site, at its own threshold."""

    name: str
    normals: int
    pneumonias: int
    patients: int
    left_out: int  # images that the model was trained or chosen on
    metrics: dict[str, Interval]  # of COMPARED
    drop: Interval | None  # AUROC of the report's own data less that of this site; None: own data
    unlike: int  # images that the input gate finds unlike the training images, or refuses
    others: tuple[Others, ...]  # images of neither class


def load_site(text: str, predictor: Predictor, strict: bool = False) -> tuple[Dataset, int]:
    """Return the images of a source without those of the model's own splits, and their number.

    Raises:
        UserError: the model was trained or chosen on all of them.
    """
    from datasets import concatenate_datasets

    data = concatenate_datasets(list(load_splits([text], strict).values()))
    known = set().union(*(one for split in SEEN for one in hashes_by_member(predictor, split)))
    new = [row for row, one in enumerate(to_hex(hash_images(data))) if one not in known]
    if not new:
        raise UserError(f"The model was trained or chosen on all images of {text}; leave it out.")
    return data.select(new), len(data) - len(new)


def measure_site(
    name: str,
    scores: Scores,
    threshold: float,
    resamples: int,
    main: Scores | None = None,
    others: Sequence[Others] = (),
    left_out: int = 0,
    seed: int = 13,
) -> SiteResult:
    """Return the results of a site, and the drop of the AUROC from `main` to it.

    Patients of the two sites are resampled independently.
    """

    def compute(rows: np.ndarray) -> list[float]:
        return [
            METRICS[one].function(scores.labels[rows], scores.probabilities[rows], threshold)
            for one in COMPARED
        ]

    draws = np.array([compute(d) for d in _draw(scores, resamples, seed)])
    values = compute(np.arange(len(scores.labels)))
    metrics = {
        one: percentile_interval(value, of)
        for one, value, of in zip(COMPARED, values, draws.T, strict=True)
    }
    drop = None
    if main is not None:
        area = METRICS["auroc"].function
        of_main = [
            area(main.labels[d], main.probabilities[d], 0) for d in _draw(main, resamples, seed + 1)
        ]
        value = area(main.labels, main.probabilities, 0) - values[0]
        drop = percentile_interval(value, (of_main - draws[:, 0]).tolist())
    return SiteResult(
        name,
        int(np.sum(scores.labels == 0)),
        int(np.sum(scores.labels == 1)),
        len(set(scores.patients)),
        left_out,
        metrics,
        drop,
        int(np.sum(scores.distances >= 1)),
        tuple(others),
    )


def score_site(
    text: str,
    predictor: Predictor,
    main: Scores,
    resamples: int,
    other_classes: Sequence[str] = (),
    steps: Steps | None = None,
) -> SiteResult:
    """Return the results on the source `[NAME=][KIND:]WHERE`.

    Images of `other_classes` are scored where the source is a folder that has them.

    Raises:
        UserError: as of `load_site` and `score_images`.
    """
    source = parse_source(text)
    data, left_out = load_site(text, predictor)
    scores = score_images(predictor, data, source.name, steps=steps)
    present = []
    if source.is_folder:
        present = [one for one in other_classes if (expand(source.where) / one).is_dir()]
    others = list_others(source.where, present) if present else []
    return measure_site(
        source.name,
        scores,
        predictor.operating_point.threshold,
        resamples,
        main,
        score_other_classes(predictor, others, [])[0],
        left_out,
    )


def _draw(scores: Scores, resamples: int, seed: int) -> list[np.ndarray]:
    return list(draw_patients(scores.labels, scores.patients, resamples, seed))
