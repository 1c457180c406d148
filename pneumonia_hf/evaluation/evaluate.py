"""evaluate_predictor: one data set, scored through the Predictor -> one Report."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.table import ALL, column
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.metrics import (
    Interval,
    bootstrap_intervals,
    calibration_p_value,
    draw_patients,
)
from pneumonia_hf.evaluation.subgroups import (
    Others,
    Subgroup,
    measure_subgroups,
    predict_rows,
    score_other_classes,
)
from pneumonia_hf.files import read_json
from pneumonia_hf.inference.operating_point import OperatingPoint
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, RUN_FILE, check_model_folder

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
RESAMPLES = 1000


@dataclass(frozen=True)
class Referral:
    """How many images are referred, and what the decisions on the others are worth for it."""

    referred: int
    error: Interval  # share of all images on the wrong side of the threshold
    error_of_kept: Interval  # the same of those that are not referred
    error_of_referred: float  # NaN where none is


@dataclass(frozen=True)
class Report:
    """What a model scored on one data set; all that the figures and tables are made from."""

    data: str  # the data folder's name
    split: str  # train, validation, test or all
    model: str
    tta: bool  # whether test-time augmentation was on
    weights_sha256: str  # of an ensemble those of its members, joined by +
    operating_point: OperatingPoint
    metrics: dict[str, Interval]
    resamples: int  # of the bootstrap behind the intervals
    files: tuple[str, ...]  # relative to the data folder where they lie in it
    labels: np.ndarray  # [N] of 0 and 1
    probabilities: np.ndarray  # [N], calibrated P(pneumonia)
    patients: tuple[str, ...]  # [N]
    decisions: tuple[str, ...]  # [N]
    calibration_p: float  # of calibrated probabilities fitting as badly, by Spiegelhalter's test
    referral: Referral
    subgroups: tuple[Subgroup, ...]
    others: tuple[Others, ...]
    other_rows: tuple[tuple[str, str, float, str], ...]  # file, class, probability, decision
    external: bool  # of another site than the training data, as whoever measured it says
    seen_in_training: int  # images that the model or a member was trained on, by their bytes
    seen_in_validation: int  # images on which it was chosen
    seen_in_test: int  # images of the internal test split, of the same site
    unreadable: tuple[str, ...]  # why each image that could not be read was not
    notes: tuple[str, ...]  # what a reader must know before believing the numbers

    @property
    def confusion(self) -> dict[str, int]:
        """Return the counts at the threshold: every image counts, also a referred one."""
        called = self.probabilities >= self.operating_point.threshold
        ill = self.labels == 1
        return {
            "true_positive": int(np.sum(called & ill)),
            "false_negative": int(np.sum(~called & ill)),
            "false_positive": int(np.sum(called & ~ill)),
            "true_negative": int(np.sum(~called & ~ill)),
        }


def choose_split(
    data_dir: str | Path | Sequence[str],
    split: str | None,
    predictor: Predictor,
    strict: bool = False,
) -> tuple[str, Dataset]:
    """Return the name and the rows of the part that is to be scored.

    With `split`, the folder of that name; where there is none, the images that the model itself
    (an ensemble: each of its members) kept apart under that name when it was trained, known by
    their bytes. Without `split`, the
    test folder, or all of a folder without parts.

    Raises:
        UserError: no such part there.
    """
    from datasets import concatenate_datasets

    splits = load_splits(data_dir, strict)
    summary = data_dir if isinstance(data_dir, str | Path) else ", ".join(data_dir)
    if split is None:
        if ALL in splits and len(splits) > 1:
            raise UserError(
                f"Of {summary}, some are parted and some are not; measure them one at a time."
            )
        name = "test" if "test" in splits else "all"
        if name not in splits:
            raise UserError(
                f"{summary} has no test folder; say which to score with --split "
                f"{' or '.join(sorted(splits))}."
            )
        return name, splits[name]
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r}; choose from {sorted(set(SPLITS))}.")
    name = SPLITS[split]
    if name in splits:
        return name, splits[name]
    own = set.intersection(*_hashes_by_member(predictor, name))
    if not own:
        raise UserError(
            f"{summary} has no {split} folder (it has {', '.join(sorted(splits))}), and the model "
            f"does not say which images it kept apart; leave --split out."
        )
    data = concatenate_datasets(list(splits.values()))
    rows = [row for row, digest in enumerate(to_hex(hash_images(data))) if digest in own]
    if not rows:
        raise UserError(
            f"{summary} has no {split} folder and none of the {len(own)} images of the model's "
            f"own {split} part; leave --split out."
        )
    return name, data.select(rows)


def check_card(models: Sequence[str], tta: bool) -> Path:
    """Return the folder of a model whose card may be given the numbers of a report.

    Raises:
        UserError: several models or an ensemble, which have no card, or test-time augmentation,
            without which the model will be used; not a saved model folder of the user's own.
    """
    folder = Path(models[0])
    if len(models) > 1 or (folder / ENSEMBLE_FILE).exists():
        raise UserError("An ensemble has no card; leave --add_to_card out.")
    if tta:
        raise UserError(
            "The card tells what the model scores by itself; leave --add_to_card or --tta out."
        )
    check_model_folder(folder)
    return folder


def evaluate_predictor(
    predictor: Predictor,
    dataset: Dataset,
    data: str = "data",
    split: str = "all",
    resamples: int = RESAMPLES,
    strict: bool = False,
    subgroups: Sequence[str] = (),
    others: Sequence[OtherImage] = (),
    external: bool = False,
) -> Report:
    """Score every image of `dataset` as the app would, and measure it.

    Args:
        predictor: the model, with its own threshold.
        dataset: with image, label and patient, as `load_splits` returns.
        data, split: what the report calls it.
        resamples: number of bootstrap resamples of the intervals.
        strict: whether an image that cannot be read is an error; else the report lists it.
        subgroups: columns of metadata; each value is measured by itself too.
        others: images of neither class, as `list_others` returns them: scored, in no metric.
        external: whether the data is of another site than any that the model was trained on.

    Raises:
        UserError: a class is absent; no such column; external data that the model has seen;
            with `strict`, some images cannot be read.
    """
    missing = [name for name in subgroups if name not in dataset.column_names]
    if missing:
        known = sorted(set(dataset.column_names) - {"image", "label", "patient", "file"})
        raise UserError(
            f"The data has no column {missing[0]!r} for --subgroups; it has {', '.join(known)}."
        )
    predictions, kept, unreadable = predict_rows(predictor, dataset, strict)
    dataset = dataset.select(kept) if unreadable else dataset
    labels = column(dataset, "label").to_numpy()
    for label, name in enumerate(LABELS):
        if not np.any(labels == label):
            raise UserError(
                f"The {split} split of {data} has no readable {name}; both classes are needed."
            )
    probabilities = np.asarray([one.probability for one in predictions])
    decisions = tuple(one.decision for one in predictions)
    patients = tuple(dataset["patient"][:])
    known = {
        name: set.union(*_hashes_by_member(predictor, name))
        for name in ("train", "validation", "test")
    }
    hashes = to_hex(hash_images(dataset)) if any(known.values()) else []
    seen = {name: sum(one in of_split for one in hashes) for name, of_split in known.items()}
    if external and any(seen.values()):
        raise UserError(
            f"{sum(seen.values())} of the images of {data} are of the model's own data, so it is "
            f"not external; leave --external out."
        )
    point = predictor.operating_point
    metrics = bootstrap_intervals(labels, probabilities, point.threshold, patients, resamples)
    of_others, other_rows, unread_others = score_other_classes(predictor, others, subgroups)
    unreadable += unread_others
    return Report(
        data=data,
        split=split,
        model=Path(predictor.name).name if predictor.path else predictor.name,
        tta=predictor.tta,
        weights_sha256=_hash_weights(predictor),
        operating_point=point,
        metrics=metrics,
        resamples=resamples,
        files=tuple(dataset["file"][:]),
        unreadable=unreadable,
        labels=labels,
        probabilities=probabilities,
        patients=patients,
        decisions=decisions,
        calibration_p=calibration_p_value(labels, probabilities),
        referral=measure_referral(
            labels, probabilities >= point.threshold, decisions, patients, resamples
        ),
        subgroups=tuple(
            one
            for name in subgroups
            for one in measure_subgroups(
                name, dataset[name][:], labels, probabilities, point.threshold, patients, resamples
            )
        ),
        others=of_others,
        other_rows=other_rows,
        external=external,
        seen_in_training=seen["train"],
        seen_in_validation=seen["validation"],
        seen_in_test=seen["test"],
        notes=_notes(predictor, labels, probabilities, metrics, seen, len(unreadable)),
    )


def measure_referral(
    labels: np.ndarray,
    called: np.ndarray,
    decisions: Sequence[str],
    patients: Sequence[str],
    resamples: int = RESAMPLES,
) -> Referral:
    """Return what referring some images does to the error on the others.

    Args:
        labels, called: the truth and the side of the threshold, [N] of 0 and 1 or booleans.
        decisions: REFER for those that are referred, [N].
        patients, resamples: for the bootstrap intervals.
    """
    wrong = called != (labels == 1)
    kept = np.asarray([one != "REFER" for one in decisions])

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else math.nan

    draws = np.array(
        [
            (mean(wrong[rows]), mean(wrong[rows][kept[rows]]))
            for rows in draw_patients(labels, patients, resamples, seed=13)
        ]
    )
    errors = [mean(wrong), mean(wrong[kept])]
    intervals = []
    for value, drawn in zip(errors, draws.T, strict=True):
        defined = drawn[~np.isnan(drawn)]
        low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (math.nan,) * 2
        intervals.append(Interval(value, float(low), float(high)))
    return Referral(int((~kept).sum()), *intervals, mean(wrong[~kept]))


def _hashes_by_member(predictor: Predictor, split: str) -> list[set[str]]:
    """Return the images of a part of the run that made each single model; none if unknown."""
    runs = (
        read_json(member.path / RUN_FILE, otherwise={}) if member.path else {}
        for member in predictor.networks
    )
    return [set(run.get("hashes", {}).get(split, ())) for run in runs]


def _hash_weights(predictor: Predictor) -> str:
    digests = []
    for member in predictor.networks:
        weights = member.path / "model.safetensors" if member.path else None
        if weights is None or not weights.exists():
            return ""
        with weights.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return "+".join(digests)


def _notes(predictor, labels, probabilities, metrics, seen, unreadable) -> tuple[str, ...]:
    from scipy.stats import binomtest

    notes = []
    if unreadable:
        files = "file" if unreadable == 1 else "files"
        notes.append(f"{unreadable} {files} could not be read, and no number below counts them.")
    if seen["train"]:
        notes.append(
            f"The model was trained on {seen['train']} of these images: the numbers are "
            f"optimistically biased."
        )
    if seen["validation"]:
        notes.append(
            f"Checkpoint and threshold were chosen on {seen['validation']} of these images: the "
            f"numbers are optimistically biased."
        )
    if seen["test"]:
        notes.append(
            f"{seen['test']} of these images are of the site that the model was trained on: they "
            f"say little about another one."
        )
    notes.extend(predictor.caveats)
    counts = {
        "accuracy": len(labels),
        "sensitivity": int(np.sum(labels == 1)),
        "specificity": int(np.sum(labels == 0)),
    }
    for name, count in counts.items():
        interval = metrics[name]
        if interval.low == interval.high == 1.0:
            # The bootstrap cannot draw an error that was not seen.
            low = binomtest(count, count).proportion_ci(method="exact").low
            notes.append(
                f"No error was seen in {name}, so its bootstrap interval has no width; "
                f"the exact binomial one (Clopper and Pearson 1934) is {low:.3f} to 1."
            )
    return tuple(notes)
