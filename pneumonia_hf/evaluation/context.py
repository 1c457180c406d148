"""What the sections of a report measure from: a model, its scores on one data set, and settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.evaluation.scores import Scores, hash_weights
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.evaluation.subgroups import ScoredOthers, list_groups
from pneumonia_hf.hub import public_name
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.statistics.intervals import Interval, draw_patients
from pneumonia_hf.statistics.metrics import bootstrap_intervals
from pneumonia_hf.statistics.selective import Referral, measure_referral

if TYPE_CHECKING:
    from datasets import Dataset

    from pneumonia_hf.data.folder_source import OtherImage


@dataclass(frozen=True)
class EvaluationConfig:
    """What an evaluation measures and shows, besides the metrics."""

    resamples: int = 1000  # of the bootstrap behind the intervals
    strict: bool = False  # an unreadable image is an error; otherwise the report lists it
    subgroups: tuple[str, ...] = ()  # columns of metadata; none: all that make groups
    external: bool = False  # the data is of another site than all training data
    robustness_images: int = 0  # drawn at random, perturbed and scored again
    attribution_images: int = 0  # true positives on which attribution methods are tested
    audit: str = "none"  # of the data: none, quick or full
    label_source: str | None = None  # who labelled the data, as the user says
    published: Path | None = None  # a file of results of others
    with_images: bool = False  # whether the report shows X-rays


@dataclass(frozen=True)
class Site:
    """The images of a source on which the model was neither trained nor chosen."""

    name: str
    data: Dataset
    left_out: int  # images of patients on whom it was
    in_test: int
    others: tuple[OtherImage, ...]  # images of neither class


@dataclass(frozen=True)
class Evaluation:
    """A model, its scores on one data set, and what else is asked for."""

    predictor: Predictor
    data: str  # the name of the data
    split: str  # train, validation, test or all
    scores: Scores  # of the single images
    seen: dict[str, int]  # images in each split of the model's training run, by their bytes
    others: ScoredOthers  # images of neither class
    config: EvaluationConfig
    steps: Steps  # where slow results are kept
    sites: tuple[Site, ...] = ()  # other data for the same model
    second: Predictor | None = None  # a model to compare with

    @cached_property
    def model(self) -> str:
        """The name of the model, without local folders."""
        return public_name(self.predictor.name) if self.predictor.path else self.predictor.name

    @cached_property
    def weights_sha256(self) -> str:
        """The hash of the weights; those of an ensemble's members are joined by +."""
        return hash_weights(self.predictor)

    @property
    def threshold(self) -> float:
        """The threshold of the model."""
        return self.predictor.operating_point.threshold

    @property
    def has_threshold(self) -> bool:
        """Whether the model stores a threshold and a calibration, for a prevalence of 50%."""
        return self.predictor.has_threshold

    @property
    def labels(self) -> np.ndarray:
        """0 or 1 of each image, [N]."""
        return self.scores.labels

    @property
    def probabilities(self) -> np.ndarray:
        """Calibrated P(pneumonia) of each image, [N]."""
        return self.scores.probabilities

    @cached_property
    def positive(self) -> np.ndarray:
        """Whether each image is positive at the threshold, bool [N]; referred images count too."""
        return self.probabilities >= self.threshold

    @property
    def prevalence(self) -> float:
        """The share of pneumonias."""
        return float(np.mean(self.labels))

    @cached_property
    def resamples(self) -> list[np.ndarray]:
        """The rows of each bootstrap resample of patients, the same for all intervals."""
        return list(draw_patients(self.labels, self.scores.patients, self.config.resamples))

    @cached_property
    def metrics(self) -> dict[str, Interval]:
        """All metrics at the threshold."""
        return bootstrap_intervals(
            self.labels, self.probabilities, self.threshold, self.scores.patients, self.resamples
        )

    @cached_property
    def confusion(self) -> dict[str, int]:
        """The counts at the threshold."""
        ill = self.labels == 1
        return {
            "true_positive": int(np.sum(self.positive & ill)),
            "false_negative": int(np.sum(~self.positive & ill)),
            "false_positive": int(np.sum(self.positive & ~ill)),
            "true_negative": int(np.sum(~self.positive & ~ill)),
        }

    @cached_property
    def referral(self) -> Referral:
        """The error on the images that are referred, and on those that are kept."""
        return measure_referral(self.labels, self.positive, self.scores.referred, self.resamples)

    @cached_property
    def groups(self) -> dict[str, list[str | None]]:
        """The group of each image, by column of metadata."""
        return list_groups(self.scores.rows, self.config.subgroups)

    @property
    def unreadable(self) -> tuple[str, ...]:
        """The reason for each image that could not be read."""
        return self.scores.unreadable + self.others.unreadable
