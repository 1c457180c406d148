"""report_on: models and sources as a user names them -> a report in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.folder_source import list_others
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import (
    choose_split,
    count_seen,
    leave_out_used,
    select_listed,
)
from pneumonia_hf.evaluation.compare import Comparison, compare_scores
from pneumonia_hf.evaluation.evaluate import (
    DataFinding,
    EvaluationConfig,
    Report,
    evaluate_predictor,
)
from pneumonia_hf.evaluation.report.examples import choose_examples, draw_examples
from pneumonia_hf.evaluation.report.published import find_published
from pneumonia_hf.evaluation.report.write import write_report
from pneumonia_hf.evaluation.scores import Scores, identify, score_images
from pneumonia_hf.evaluation.sites import load_site, score_site
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.files import expand
from pneumonia_hf.hub import public_name
from pneumonia_hf.inference.predictor import Predictor

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class EvaluationInputs:
    """The models and data of a report."""

    models: tuple[str, ...]  # folders or Hub ids; several form an ensemble
    data_dir: tuple[str, ...]  # sources, each [NAME=][KIND:]WHERE
    name: str | None = None  # of the data, in the report
    split: str | None = None
    images: str | None = None  # a file of hashes: only these images
    other_classes: tuple[str, ...] = ()  # folders of images of neither class
    sites: tuple[str, ...] = ()  # further sources
    compare: str | None = None  # a second model
    positive_label: tuple[str, ...] = ("PNEUMONIA",)  # of all models, or of each
    compare_positive_label: str = "PNEUMONIA"
    label_source: str | None = None  # who labelled the data, in words
    tta: bool = False
    published: Path | None = None  # a file of published results
    with_images: bool = False  # whether the report holds images


def report_on(
    inputs: EvaluationInputs,
    config: EvaluationConfig,
    folder: Path,
    audit: Callable[[Dataset], Mapping[str, Any]] = lambda rows: {},
) -> Report:
    """Score models on data, and write the report into `folder`.

    What was computed before an interruption is kept beside `folder`, and used by the next call
    with the same model and images.

    Args:
        inputs: the models and the data.
        config: what to measure.
        folder: of the report.
        audit: returns the findings on the readable images, each with `verdict` and `text`, by
            check. The audit itself cannot be imported here, since it builds on this package.

    Raises:
        UserError: as of the functions that it calls.
    """
    sources = [parse_source(one) for one in inputs.data_dir]
    others = []
    if inputs.other_classes:
        if len(sources) > 1 or not sources[0].is_folder:
            raise UserError("--other_classes needs one folder as --data_dir.")
        wanted = inputs.other_classes
        if inputs.sites:  # they may have folders that this data lacks
            wanted = [one for one in wanted if (expand(sources[0].where) / one).is_dir()]
        others = list_others(sources[0].where, wanted)
    predictor = Predictor.from_pretrained(
        inputs.models, tta=inputs.tta, positive_label=inputs.positive_label
    )
    split, data = choose_split(inputs.data_dir, inputs.split, predictor, config.strict)
    if inputs.images:
        data, others = select_listed(data, others, inputs.images)
    others = leave_out_used(others, predictor)
    # Before anything is scored, so that a mistake shows at once.
    places = [load_site(one, predictor, inputs.other_classes) for one in inputs.sites]
    second = None
    if inputs.compare:
        second = Predictor.from_pretrained(
            inputs.compare,
            tta=inputs.tta,
            positive_label=inputs.compare_positive_label,
            flags=("--compare", "--compare_positive_label"),
        )
    steps = Steps(folder.with_name(f".{folder.name}.steps"), identify(predictor, data))
    name = inputs.name or " + ".join(one.name for one in sources)
    report = evaluate_predictor(predictor, data, name, split, config, others, steps)
    findings = tuple(
        DataFinding(check, found.verdict, found.text)
        for check, found in audit(report.scores.rows).items()
    )
    sites = tuple(
        score_site(one, predictor, report.scores, config.resamples, steps) for one in places
    )
    comparison = _compare(report.scores, second, predictor, config, steps) if second else None
    published = None
    if inputs.published:
        published = find_published(inputs.published, *np.bincount(report.labels, minlength=2))
    report = replace(
        report,
        findings=findings,
        sites=sites,
        comparison=comparison,
        published=published,
        label_source=inputs.label_source,
    )
    sheet = None
    if inputs.with_images:
        examples = choose_examples(report.scores, report.operating_point.threshold)
        best = report.faithfulness and report.faithfulness.best
        sheet = draw_examples(predictor, report.scores, examples, best)
    write_report(report, folder, sheet)
    steps.remove()
    return report


def _compare(
    scores: Scores,
    second: Predictor,
    first: Predictor,
    config: EvaluationConfig,
    steps: Steps,
) -> Comparison:
    name = public_name(second.name) if second.path else second.name
    others = score_images(second, scores.rows, f"the images for {name}", steps=steps)
    thresholds = tuple(one.operating_point.threshold for one in (first, second))
    seen = count_seen(second, scores.rows)
    return compare_scores(scores, others, thresholds, name, config.resamples, seen)
