"""evaluate_predictor: one data set, scored through the Predictor -> one Report."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.file_hashes import hash_content, hash_images, to_hex
from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.load import load_splits, read_image_list
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.data.table import ALL, column
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.metrics import (
    Interval,
    bootstrap_intervals,
    calibration_p_value,
    draw_patients,
    percentile_interval,
)
from pneumonia_hf.evaluation.robustness import Robustness, measure_robustness
from pneumonia_hf.evaluation.subgroups import (
    Others,
    Subgroup,
    measure_subgroups,
    predict_rows,
    score_other_classes,
)
from pneumonia_hf.files import read_json
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.inference.gate import REFUSED_AT
from pneumonia_hf.inference.operating_point import OperatingPoint
from pneumonia_hf.inference.predictor import Prediction, Predictor
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, RUN_FILE, check_model_folder

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
RESAMPLES = 1000


@dataclass(frozen=True)
class Referral:
    """How many images are referred, and how that changes the error on the others."""

    referred: int
    error: Interval  # share of all images on the wrong side of the threshold
    error_of_kept: Interval  # the same of the images that are not referred
    error_of_referred: float  # NaN if no image is referred


@dataclass(frozen=True)
class Report:
    """The scores of a model on one data set: the source of all figures and tables."""

    data: str  # the data folder's name
    split: str  # train, validation, test or all
    model: str
    tta: bool  # whether test-time augmentation was on
    weights_sha256: str  # those of an ensemble's members are joined by +
    operating_point: OperatingPoint
    metrics: dict[str, Interval]
    resamples: int  # of the bootstrap behind the intervals
    files: tuple[str, ...]  # relative to the data folder if they are inside it
    labels: np.ndarray  # [N] of 0 and 1
    probabilities: np.ndarray  # [N], calibrated P(pneumonia)
    patients: tuple[str, ...]  # [N]
    decisions: tuple[str, ...]  # [N]
    calibration_p: float  # of Spiegelhalter's test
    referral: Referral
    subgroups: tuple[Subgroup, ...]
    others: tuple[Others, ...]
    other_rows: tuple[tuple[str, str, float, str], ...]  # file, class, probability, decision
    external: bool  # of another site than the training data, as the caller states
    seen_in_training: int  # images on which the model or a member was trained, by their bytes
    seen_in_validation: int  # images on which it was selected
    seen_in_test: int  # images of its internal test set, of the same site
    robustness: Robustness | None  # results on perturbed copies, if they were asked for
    unreadable: tuple[str, ...]  # the reason for each unreadable image
    notes: tuple[str, ...]  # reservations about the numbers

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


def select_listed(
    data: Dataset, others: Sequence[OtherImage], path: str | Path
) -> tuple[Dataset, list[OtherImage]]:
    """Return the images, and those of other classes, whose hashes are in a file.

    Raises:
        UserError: the list cannot be read, or names none of the images.
    """
    listed = read_image_list(path)
    rows = [row for row, one in enumerate(to_hex(hash_images(data))) if one in listed]
    if not rows:
        raise UserError(f"None of the images is in {path}; check --images and --data_dir.")
    kept = [one for one in others if hash_content(one.path.read_bytes())[:8].hex() in listed]
    return data.select(rows), kept


def choose_split(
    data_dir: str | Path | Sequence[str],
    split: str | None,
    predictor: Predictor,
    strict: bool = False,
) -> tuple[str, Dataset]:
    """Return the name and the rows of the split to score.

    With `split`, the folder of that name; if there is none, the images of the model's own split
    of that name (for an ensemble: common to all members), found by their bytes. Without `split`,
    the test folder, or all of a folder without splits.

    Raises:
        UserError: there is no such split.
    """
    from datasets import concatenate_datasets

    splits = load_splits(data_dir, strict)
    where = data_dir if isinstance(data_dir, str | Path) else ", ".join(data_dir)
    if split is None:
        if ALL in splits and len(splits) > 1:
            raise UserError(
                f"Some sources of {where} have splits and some do not; evaluate them separately."
            )
        name = "test" if "test" in splits else "all"
        if name not in splits:
            choices = " or ".join(sorted(splits))
            raise UserError(f"{where} has no test folder; choose a split: --split {choices}.")
        return name, splits[name]
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r}; choose from {sorted(set(SPLITS))}.")
    name = SPLITS[split]
    if name in splits:
        return name, splits[name]
    own = set.intersection(*_hashes_by_member(predictor, name))
    if not own:
        raise UserError(
            f"{where} has no {split} folder (it has {', '.join(sorted(splits))}), and the model "
            f"does not record its own {split} split; leave --split out."
        )
    data = concatenate_datasets(list(splits.values()))
    rows = [row for row, digest in enumerate(to_hex(hash_images(data))) if digest in own]
    if not rows:
        raise UserError(
            f"{where} has no {split} folder and none of the {len(own)} images of the model's "
            f"own {split} split; leave --split out."
        )
    return name, data.select(rows)


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
    resamples: int = RESAMPLES,
    strict: bool = False,
    subgroups: Sequence[str] = (),
    others: Sequence[OtherImage] = (),
    external: bool = False,
    robustness_images: int = 0,
) -> Report:
    """Score every image of `dataset` as the app would, and compute the metrics.

    Args:
        predictor: the model, with its own threshold.
        dataset: with image, label and patient, as `load_splits` returns.
        data, split: names for the report.
        resamples: of the bootstrap behind the intervals.
        strict: whether an unreadable image is an error; otherwise the report lists it.
        subgroups: columns of metadata; the metrics of each value are reported too.
        others: images of neither class, as `list_others` returns them; they are in no metric.
        external: whether the data is of another site than all training data.
        robustness_images: number of images, drawn at random, that are perturbed and scored again;
            0: none.

    Raises:
        UserError: a class is absent; an unknown column; external data that the model has seen;
            with `strict`, an unreadable image.
    """
    _check_columns(dataset, subgroups)
    predictions, dataset, unreadable = predict_rows(predictor, dataset, strict)
    labels = column(dataset, "label").to_numpy()
    for label, name in enumerate(LABELS):
        if not np.any(labels == label):
            raise UserError(
                f"The {split} split of {data} has no readable {name}; both classes are needed."
            )
    seen = _count_seen(predictor, dataset)
    if external and any(seen.values()):
        raise UserError(
            f"{sum(seen.values())} of the images of {data} are of the model's own data, so it is "
            f"not external; leave --external out."
        )
    probabilities = np.asarray([one.probability for one in predictions])
    decisions = tuple(one.decision for one in predictions)
    patients = tuple(dataset["patient"][:])
    threshold = predictor.operating_point.threshold
    metrics = bootstrap_intervals(labels, probabilities, threshold, patients, resamples)
    of_others, other_rows, unreadable_others = score_other_classes(predictor, others, subgroups)
    unreadable += unreadable_others
    return Report(
        data=data,
        split=split,
        model=Path(predictor.name).name if predictor.path else predictor.name,
        tta=predictor.tta,
        weights_sha256=_hash_weights(predictor),
        operating_point=predictor.operating_point,
        metrics=metrics,
        resamples=resamples,
        files=tuple(dataset["file"][:]),
        labels=labels,
        probabilities=probabilities,
        patients=patients,
        decisions=decisions,
        calibration_p=calibration_p_value(labels, probabilities),
        referral=measure_referral(
            labels, probabilities >= threshold, decisions, patients, resamples
        ),
        subgroups=tuple(
            one
            for name in subgroups
            for one in measure_subgroups(
                name, dataset[name][:], labels, probabilities, threshold, patients, resamples
            )
        ),
        others=of_others,
        other_rows=other_rows,
        external=external,
        seen_in_training=seen["train"],
        seen_in_validation=seen["validation"],
        seen_in_test=seen["test"],
        robustness=_measure_robustness(predictor, dataset, labels, robustness_images),
        unreadable=unreadable,
        notes=(
            *_notes_on_images(seen, len(unreadable)),
            *_notes_on_gate(predictions),
            *predictor.caveats,
            *_notes_on_intervals(labels, metrics),
        ),
    )


def _measure_robustness(
    predictor: Predictor, dataset: Dataset, labels: np.ndarray, count: int
) -> Robustness | None:
    if not count:
        return None
    rows = np.sort(np.random.default_rng(13).permutation(len(labels))[:count])
    if len(np.unique(labels[rows])) < 2:
        raise UserError("The images drawn for --robustness have one class only; give more images.")
    chosen = dataset.select(rows)
    images = (read_xray(source, name) for name, source in open_images(chosen))
    return measure_robustness(predictor, images, labels[rows], chosen["patient"][:], log=print)


def measure_referral(
    labels: np.ndarray,
    positive: np.ndarray,
    decisions: Sequence[str],
    patients: Sequence[str],
    resamples: int = RESAMPLES,
) -> Referral:
    """Return how referring the images with the decision REFER changes the error on the others.

    `labels` and `positive` are the label and the side of the threshold, [N] of 0 and 1 or
    booleans; `patients` and `resamples` are for the bootstrap intervals.
    """
    wrong = positive != (labels == 1)
    kept = np.asarray([one != "REFER" for one in decisions])

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else math.nan

    draws = [
        (mean(wrong[rows]), mean(wrong[rows][kept[rows]]))
        for rows in draw_patients(labels, patients, resamples, seed=13)
    ]
    values = (mean(wrong), mean(wrong[kept]))
    intervals = map(percentile_interval, values, zip(*draws, strict=True))
    return Referral(int((~kept).sum()), *intervals, mean(wrong[~kept]))


def _check_columns(dataset: Dataset, subgroups: Sequence[str]) -> None:
    if missing := [name for name in subgroups if name not in dataset.column_names]:
        known = sorted(set(dataset.column_names) - {"image", "label", "patient", "file"})
        raise UserError(
            f"The data has no column {missing[0]!r} for --subgroups; it has {', '.join(known)}."
        )


def _hashes_by_member(predictor: Predictor, split: str) -> list[set[str]]:
    """Return the image hashes of a split of each member's training run; empty if unknown."""
    runs = (
        read_json(member.path / RUN_FILE, otherwise={}) if member.path else {}
        for member in predictor.networks
    )
    return [set(run.get("hashes", {}).get(split, ())) for run in runs]


def _count_seen(predictor: Predictor, dataset: Dataset) -> dict[str, int]:
    """Return how many images are in each split of the model's (or a member's) training run."""
    names = ("train", "validation", "test", "unlabelled")
    known = {name: set.union(*_hashes_by_member(predictor, name)) for name in names}
    known["train"] |= known.pop("unlabelled")
    hashes = to_hex(hash_images(dataset)) if any(known.values()) else []
    return {name: sum(one in of_split for one in hashes) for name, of_split in known.items()}


def _hash_weights(predictor: Predictor) -> str:
    digests = []
    for member in predictor.networks:
        weights = member.path / "model.safetensors" if member.path else None
        if weights is None or not weights.exists():
            return ""
        with weights.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return "+".join(digests)


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


def _notes_on_gate(predictions: Sequence[Prediction]) -> list[str]:
    distances = np.array([one.distance for one in predictions if one.distance is not None])
    if not len(distances):
        return []
    refused = int(np.sum(distances >= REFUSED_AT))
    unlike = int(np.sum(distances >= 1)) - refused
    return [
        f"The input gate finds {unlike} of the {len(distances)} images unlike the training images, "
        f"and would refuse {refused} as no chest X-rays; both are in every number below, as REFER."
    ]


def _notes_on_intervals(labels: np.ndarray, metrics: Mapping[str, Interval]) -> list[str]:
    """Return a note for each metric without an error: the bootstrap cannot draw unseen errors."""
    from scipy.stats import binomtest

    normals, pneumonias = np.bincount(labels, minlength=2).tolist()
    counts = {"accuracy": len(labels), "sensitivity": pneumonias, "specificity": normals}
    return [
        f"{name} has no error, so its bootstrap interval has no width; the exact binomial interval "
        f"(Clopper and Pearson 1934) is "
        f"{binomtest(count, count).proportion_ci(method='exact').low:.3f} to 1."
        for name, count in counts.items()
        if metrics[name].low == metrics[name].high == 1.0
    ]
