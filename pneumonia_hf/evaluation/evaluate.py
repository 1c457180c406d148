"""evaluate_predictor: one data set, scored through the Predictor -> one Report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import count_seen
from pneumonia_hf.evaluation.context import Evaluation, EvaluationConfig, Site
from pneumonia_hf.evaluation.report import Report
from pneumonia_hf.evaluation.scores import NO_CHEST, UNLIKE, score_images
from pneumonia_hf.evaluation.sections import (
    attribution,
    calibration,
    checklist,
    comparison,
    data,
    discrimination,
    examples,
    other_class,
    phantom,
    published,
    referral,
    robustness,
    sites,
    subgroups,
    thresholds,
)
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.evaluation.subgroups import list_groups, score_other_classes
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.inference.score_check import explain_score_misfit
from pneumonia_hf.reporting.numbers import to_count, to_share, to_text
from pneumonia_hf.reporting.page import Page, Section, Summary

if TYPE_CHECKING:
    from datasets import Dataset

# In their order. Each is given the evaluation, and the numbers of the sections before it.
SECTIONS: tuple[Callable[[Evaluation, Mapping[str, Any]], Section], ...] = (
    data.measure,
    discrimination.measure,
    thresholds.measure,
    calibration.measure,
    referral.measure,
    subgroups.measure,
    other_class.measure,
    robustness.measure,
    phantom.measure,
    attribution.measure,
    sites.measure,
    comparison.measure,
    examples.measure,
    published.measure,
    checklist.measure,
)
FILES_TEXT = (
    "Every image's probability, decision and metadata are in `predictions.csv` and "
    "`predictions.parquet`, all numbers of this page in `report.json`."
)
MOST_RESERVATIONS = 3  # in the summary
# Forward passes that take as long as what a section does without the network, about.
REST, AUDIT = 40, 250
SHOWN = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}


def evaluate_predictor(
    predictor: Predictor,
    dataset: Dataset,
    data: str = "data",
    split: str = "all",
    config: EvaluationConfig | None = None,
    others: Sequence[OtherImage] = (),
    steps: Steps | None = None,
    sites: tuple[Site, ...] = (),
    second: Predictor | None = None,
) -> Report:
    """Score every image of `dataset` as the app would, and measure all sections.

    Args:
        predictor: the model, with its own threshold.
        dataset: with image, label and patient, as `load_splits` returns.
        data, split: names for the report.
        config: what else to measure and to show.
        others: images of neither class, as `list_others` returns them; they are in no metric.
        steps: where slow results are kept until the report is complete.
        sites, second: other data for the same model, and a model to compare it with.

    Raises:
        UserError: a class is absent; an unknown column; external data that the model has seen;
            with `config.strict`, an unreadable image.
    """
    config, steps = config or EvaluationConfig(), steps or Steps()
    list_groups(dataset, config.subgroups)  # for its errors, before images are scored
    seen = count_seen(predictor, dataset)
    if config.external and any(seen.values()):
        raise UserError(
            f"{sum(seen.values())} of the images of {data} are of the model's own data, so it is "
            f"not external; leave --external out."
        )
    name = f"The {split} split of {data}"
    scores = score_images(predictor, dataset, name, config.strict, steps)
    groups = list_groups(scores.rows, config.subgroups)
    scored = score_other_classes(predictor, others, groups, scores, config.resamples)
    evaluation = Evaluation(
        predictor, data, split, scores, seen, scored, config, steps, sites, second
    )
    sections: list[Section] = []
    numbers: dict[str, Any] = {}
    copies, maps = robustness.count_passes(evaluation), attribution.count_passes(evaluation)
    rest = (AUDIT, *[REST] * (len(SECTIONS) - 1))  # the first audits the data
    steps.expect(copies + maps + sum(rest))
    for measure, passes in zip(SECTIONS, rest, strict=True):
        sections.append(measure(evaluation, numbers))
        numbers |= sections[-1].numbers
        steps.advance(passes)
    steps.close()
    biased, others = _list_notes(evaluation)
    sections.append(Section("Files", (FILES_TEXT,), {"notes": [*biased, *others]}))
    failed = _list_failed(numbers["findings"], numbers["phantom"]["failures"])
    reservations = [*biased, *failed, *others]
    title = f"{evaluation.model} on {data} ({split})"
    return Report(evaluation, Page(title, sections, _summarise(evaluation, reservations)))


def _summarise(evaluation: Evaluation, reservations: Sequence[str]) -> Summary:
    scores = evaluation.scores
    place = "data of another site, as stated" if evaluation.config.external else evaluation.data
    sentence = (
        f"On {len(scores.labels)} images of {place} the model ranks a random PNEUMONIA above a "
        f"random NORMAL image in {to_text(evaluation.metrics['auroc'])} of the pairs (AUROC); it "
        f"refers {to_share(evaluation.referral.referred, len(scores.labels))} of the images to a "
        f"person."
    )
    shown = [(title, to_text(evaluation.metrics[name])) for name, title in SHOWN.items()]
    kept = to_text(evaluation.referral.error_of_kept)
    shown.append(("share of wrong answers among the images that are not referred", kept))
    first, rest = reservations[:MOST_RESERVATIONS], reservations[MOST_RESERVATIONS:]
    return Summary(sentence, shown, first, rest)


def _list_failed(findings: Sequence[Mapping[str, str]], phantom: Sequence[str]) -> list[str]:
    failed = [
        f"The audit of this data fails ({one['check'].replace('_', ' ')}): {one['text']} Numbers "
        f"on such data may be made by it."
        for one in findings
        if one["verdict"] == "fail"
    ]
    if phantom:
        failed.append(f"On simulated opacities in one patient: {' '.join(phantom)}")
    return failed


def _list_notes(evaluation: Evaluation) -> tuple[list[str], list[str]]:
    """Return why the numbers are biased, and what else limits them; gravest first."""
    seen, scores, predictor = evaluation.seen, evaluation.scores, evaluation.predictor
    used = {
        "train": "The model was trained on",
        "validation": "Checkpoint and threshold were chosen on",
    }
    biased = [
        f"{text} {seen[split]} of these images: the numbers are optimistically biased."
        for split, text in used.items()
        if seen[split]
    ]
    others = []
    if seen["test"]:
        others.append(
            f"The internal test set, of the same site as the training data, holds {seen['test']} "
            f"of these images: the numbers say little about another site."
        )
    if not any(seen.values()):
        others.append(explain_score_misfit(predictor, evaluation.probabilities))
    others += [one.sentence for one in predictor.caveats]
    if not np.isnan(scores.distances).all():  # there is a gate
        unlike, refused = (int(scores.reasons[name].sum()) for name in (UNLIKE, NO_CHEST))
        others.append(
            f"The input gate finds {unlike} of the {len(scores.labels)} images unlike the training "
            f"images, and would refuse {refused} as no frontal chest X-rays; both are in every "
            f"number below, as REFER."
        )
    if unreadable := len(evaluation.unreadable):
        files = to_count(unreadable, "file")
        others.append(f"{files} could not be read, and no number below counts them.")
    return biased, [one for one in dict.fromkeys(others) if one]
