"""evaluate_predictor: one data set, scored through the Predictor -> one Report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import count_seen
from pneumonia_hf.evaluation.compare import Comparison
from pneumonia_hf.evaluation.faithfulness import Faithfulness, measure_faithfulness
from pneumonia_hf.evaluation.report.published import Published
from pneumonia_hf.evaluation.robustness import Robustness, measure_robustness
from pneumonia_hf.evaluation.scores import IN_RANGE, Scores, hash_weights, score_images
from pneumonia_hf.evaluation.sites import SiteResult
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.evaluation.subgroups import (
    Others,
    Stratified,
    Subgroup,
    list_groups,
    measure_subgroups,
    score_other_classes,
)
from pneumonia_hf.hub import public_name
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.inference.gate import REFUSED_AT
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, check_model_folder
from pneumonia_hf.statistics.calibration import CalibrationQuality, measure_calibration
from pneumonia_hf.statistics.intervals import Interval, draw_patients
from pneumonia_hf.statistics.metrics import bootstrap_intervals
from pneumonia_hf.statistics.selective import (
    Referral,
    ReferralReason,
    RiskCoverage,
    measure_referral,
    risk_coverage,
    split_by_reason,
)
from pneumonia_hf.statistics.thresholds import (
    DecisionCurve,
    OperatingPoint,
    PredictiveValues,
    ThresholdResult,
    by_prevalence,
    decision_curve,
    list_thresholds,
)

if TYPE_CHECKING:
    from datasets import Dataset


FEWEST_HITS = 4  # true positives and negatives, below which attribution is not tested


@dataclass(frozen=True)
class DataFinding:
    """What one check of the audit says of the data under test."""

    check: str
    verdict: str  # pass, warn or fail
    text: str  # a sentence


@dataclass(frozen=True)
class EvaluationConfig:
    """What an evaluation measures, besides the metrics."""

    resamples: int = 1000  # of the bootstrap behind the intervals
    strict: bool = False  # an unreadable image is an error; otherwise the report lists it
    subgroups: tuple[str, ...] = ()  # columns of metadata; none: all that make groups
    external: bool = False  # the data is of another site than all training data
    robustness_images: int = 0  # drawn at random, perturbed and scored again
    attribution_images: int = 0  # true positives on which attribution methods are tested


@dataclass(frozen=True)
class Report:
    """The scores of a model on one data set: the source of all figures and tables."""

    data: str  # the data folder's name
    split: str  # train, validation, test or all
    model: str
    tta: bool  # whether test-time augmentation was on
    weights_sha256: str  # those of an ensemble's members are joined by +
    operating_point: OperatingPoint
    calibrated: bool  # whether the model stores a calibration, which is for a prevalence of 50%
    config: EvaluationConfig
    scores: Scores  # of the single images
    metrics: dict[str, Interval]
    thresholds: tuple[ThresholdResult, ...]
    predictive_values: tuple[PredictiveValues, ...]
    decision_curve: DecisionCurve
    calibration: CalibrationQuality
    referral: Referral
    referral_by_threshold: Referral  # of those in the range of the threshold alone
    referral_reasons: tuple[ReferralReason, ...]
    risk_coverage: RiskCoverage
    subgroups: tuple[Subgroup, ...]
    stratified: tuple[Stratified, ...]
    others: tuple[Others, ...]
    other_rows: tuple[tuple[str, str, float, str], ...]  # file, class, probability, decision
    seen_in_training: int  # images on which the model or a member was trained, by their bytes
    seen_in_validation: int  # images on which it was selected
    seen_in_test: int  # images of its internal test set, of the same site
    robustness: Robustness | None  # results on perturbed copies, if they were asked for
    faithfulness: Faithfulness | None  # of the attribution methods, if they were tested
    unreadable: tuple[str, ...]  # the reason for each unreadable image
    notes: tuple[str, ...]  # reservations about the numbers
    findings: tuple[DataFinding, ...] = ()  # of the audit of this data
    sites: tuple[SiteResult, ...] = ()  # the same model on other data
    comparison: Comparison | None = None  # with another model on this data
    published: Published | None = None  # results of others on this data, if it is recognised
    label_source: str | None = None  # who labelled the data, as the user says

    @property
    def labels(self) -> np.ndarray:
        """0 or 1 of each image, [N]."""
        return self.scores.labels

    @property
    def probabilities(self) -> np.ndarray:
        """Calibrated P(pneumonia) of each image, [N]."""
        return self.scores.probabilities

    @property
    def confusion(self) -> dict[str, int]:
        """Return the counts at the threshold; referred images count too."""
        positive = self.probabilities >= self.operating_point.threshold
        ill = self.labels == 1
        return {
            "true_positive": int(np.sum(positive & ill)),
            "false_negative": int(np.sum(~positive & ill)),
            "false_positive": int(np.sum(positive & ~ill)),
            "true_negative": int(np.sum(~positive & ~ill)),
        }


def check_card(models: Sequence[str], tta: bool) -> Path:
    """Return the folder of a model whose card may take the numbers of a report.

    Raises:
        UserError: several models or an ensemble, which have no card; test-time augmentation,
            which is off by default in use; not a saved model folder of the user's own.
    """
    folder = Path(models[0])
    if len(models) > 1 or (folder / ENSEMBLE_FILE).exists():
        raise UserError("An ensemble has no card; leave --add_to_card out.")
    if tta:
        raise UserError(
            "The card holds scores without test-time augmentation; leave --add_to_card or --tta "
            "out."
        )
    check_model_folder(folder)
    return folder


def evaluate_predictor(
    predictor: Predictor,
    dataset: Dataset,
    data: str = "data",
    split: str = "all",
    config: EvaluationConfig = EvaluationConfig(),
    others: Sequence[OtherImage] = (),
    steps: Steps | None = None,
) -> Report:
    """Score every image of `dataset` as the app would, and compute the metrics.

    Args:
        predictor: the model, with its own threshold.
        dataset: with image, label and patient, as `load_splits` returns.
        data, split: names for the report.
        config: what else to measure.
        others: images of neither class, as `list_others` returns them; they are in no metric.
        steps: where slow results are kept until the report is complete.

    Raises:
        UserError: a class is absent; an unknown column; external data that the model has seen;
            with `config.strict`, an unreadable image.
    """
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
    of_others, other_rows, unreadable_others = score_other_classes(predictor, others, list(groups))
    unreadable = scores.unreadable + unreadable_others
    labels, probabilities, patients = scores.labels, scores.probabilities, scores.patients
    threshold = predictor.operating_point.threshold
    positive = probabilities >= threshold
    resamples = list(draw_patients(labels, patients, config.resamples))
    subgroups, stratified = measure_subgroups(
        groups, labels, probabilities, threshold, patients, resamples
    )
    return Report(
        data=data,
        split=split,
        model=public_name(predictor.name) if predictor.path else predictor.name,
        tta=predictor.tta,
        weights_sha256=hash_weights(predictor),
        operating_point=predictor.operating_point,
        calibrated=predictor.has_threshold,
        config=config,
        scores=scores,
        metrics=bootstrap_intervals(labels, probabilities, threshold, patients, resamples),
        thresholds=list_thresholds(labels, probabilities, threshold, resamples),
        predictive_values=by_prevalence(labels, probabilities, threshold, resamples),
        decision_curve=decision_curve(labels, probabilities),
        calibration=measure_calibration(labels, probabilities, resamples),
        referral=measure_referral(labels, positive, scores.referred, resamples),
        referral_by_threshold=measure_referral(
            labels, positive, scores.reasons[IN_RANGE], resamples
        ),
        referral_reasons=split_by_reason(labels, positive, scores.reasons),
        risk_coverage=risk_coverage(labels, probabilities, threshold, resamples),
        subgroups=subgroups,
        stratified=stratified,
        others=of_others,
        other_rows=other_rows,
        seen_in_training=seen["train"],
        seen_in_validation=seen["validation"],
        seen_in_test=seen["test"],
        robustness=_measure_robustness(predictor, scores, config, steps),
        faithfulness=_measure_faithfulness(predictor, scores, config.attribution_images, steps),
        unreadable=unreadable,
        notes=(
            *_notes_on_images(seen, len(unreadable)),
            *_notes_on_gate(scores.distances),
            *(caveat.sentence for caveat in predictor.caveats),
        ),
    )


def _measure_robustness(
    predictor: Predictor, scores: Scores, config: EvaluationConfig, steps: Steps | None
) -> Robustness | None:
    labels, count = scores.labels, config.robustness_images
    if not count:
        return None
    rows = np.sort(np.random.default_rng(13).permutation(len(labels))[:count])
    if len(np.unique(labels[rows])) < 2:
        raise UserError("The images drawn for --robustness have one class only; give more images.")
    chosen = scores.rows.select(rows)
    images = (read_xray(source, name) for name, source in open_images(chosen))
    return measure_robustness(
        predictor, images, labels[rows], chosen["patient"][:], config.resamples, steps=steps
    )


def _measure_faithfulness(
    predictor: Predictor, scores: Scores, count: int, steps: Steps | None
) -> Faithfulness | None:
    positive = scores.probabilities >= predictor.operating_point.threshold
    hits = np.flatnonzero(positive & (scores.labels == 1))
    normals = np.flatnonzero(~positive & (scores.labels == 0))
    if not count or predictor.is_ensemble or min(len(hits), len(normals)) < FEWEST_HITS:
        return None
    images = []
    for rows in (hits, normals):
        drawn = np.sort(np.random.default_rng(13).permutation(rows)[:count])
        chosen = open_images(scores.rows.select(drawn))
        images.append([read_xray(source, name) for name, source in chosen])
    return measure_faithfulness(predictor, *images, steps)


def _notes_on_images(seen: Mapping[str, int], unreadable: int) -> list[str]:
    files = "file" if unreadable == 1 else "files"
    notes = {
        f"{unreadable} {files} could not be read and are in no number below.": unreadable,
        f"The model was trained on {seen['train']} of these images: the numbers are optimistically "
        f"biased.": seen["train"],
        f"Checkpoint and threshold were chosen on {seen['validation']} of these images: the "
        f"numbers are optimistically biased.": seen["validation"],
        f"{seen['test']} of these images are of the internal test set, of the same site as the "
        f"training data: the numbers say little about another site.": seen["test"],
    }
    return [text for text, count in notes.items() if count]


def _notes_on_gate(distances: np.ndarray) -> list[str]:
    if np.isnan(distances).all():  # no gate
        return []
    refused = int(np.sum(distances >= REFUSED_AT))
    unlike = int(np.sum(distances >= 1)) - refused
    return [
        f"The input gate finds {unlike} of the {len(distances)} images unlike the training images, "
        f"and would refuse {refused} as no chest X-rays; both are in every number below, as REFER."
    ]
