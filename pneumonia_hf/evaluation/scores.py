"""Scores: the decision on every image of a data set, as arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import pneumonia_hf
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.data.table import column
from pneumonia_hf.errors import DataError, XrayError
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.hub import find_weights
from pneumonia_hf.inference.predictor import Prediction, Predictor
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.model_folder import GATE_FILE
from pneumonia_hf.reasons import OF_INPUT, REFUSING, Reason

if TYPE_CHECKING:
    from datasets import Dataset


# Reasons to refer.
IN_RANGE = "probability in the range of the threshold"
UNLIKE = "input gate: unlike the training images"
NO_CHEST = "input gate: no frontal chest X-ray"


@dataclass(frozen=True)
class Scores:
    """The predictions of a model for the readable images of a data set."""

    rows: Dataset  # of the readable images; masks are left out too
    labels: np.ndarray  # [N] of 0 and 1
    probabilities: np.ndarray  # [N], calibrated P(pneumonia)
    distances: np.ndarray  # [N], of the input gate; NaN without one
    other: np.ndarray  # [N], P(abnormal without pneumonia); NaN without such a class
    decisions: np.ndarray  # [N], of PNEUMONIA, NORMAL and REFER
    reasons: dict[str, np.ndarray]  # masks, [N]: why an image is referred
    unreadable: tuple[str, ...]  # the reason for each image that is left out

    @property
    def files(self) -> tuple[str, ...]:
        """Names, relative to the data folder if they are inside it."""
        return tuple(self.rows["file"][:])

    @property
    def referred(self) -> np.ndarray:
        """Whether each image is referred to a person: bool [N]."""
        return self.decisions == "REFER"

    @property
    def patients(self) -> tuple[str, ...]:
        """The patient of each image."""
        return tuple(self.rows["patient"][:])


def score_images(
    predictor: Predictor,
    data: Dataset,
    name: str = "data",
    strict: bool = False,
    steps: Steps | None = None,
) -> Scores:
    """Return the decision on every readable image; `name` is for messages.

    Raises:
        DataError: no image of a class can be read; with `strict`, any cannot.
    """
    steps = steps or Steps()
    found = steps.run(
        f"scores {identify(predictor, data)}", lambda: _predict(predictor, data, name, steps)
    )
    unreadable = tuple(found["unreadable"].tolist())
    kept = found["kept"]
    if unreadable and (strict or not len(kept)):
        raise DataError(
            f"{len(unreadable)} of {len(data)} files cannot be read; repair or remove them: "
            f"{' '.join(unreadable[:3])}"
        )
    rows = data.select(kept) if unreadable else data
    labels = column(rows, "label").to_numpy()
    for label, class_name in enumerate(LABELS):
        if not np.any(labels == label):
            raise DataError(f"{name} has no readable {class_name}; both classes are needed.")
    point = predictor.operating_point
    probabilities, distances = found["probabilities"], found["distances"]
    reasons = {
        IN_RANGE: (probabilities >= point.low) & (probabilities < point.high),
        UNLIKE: (distances >= 1) & ~found["refused"],
        NO_CHEST: found["refused"],
        "input checks": found["by_input_checks"],
    }
    return Scores(
        rows, labels, probabilities, distances, found["other"], found["decisions"], reasons,
        unreadable,
    )  # fmt: skip


def identify(predictor: Predictor, data: Dataset) -> list[str]:
    """Return what the scores of a model on images depend on, for `Steps`."""
    content = repr([to_hex(hash_images(data)), data["file"][:], data["label"][:]])
    return [*identify_model(predictor), hashlib.sha256(content.encode()).hexdigest()]


def identify_model(predictor: Predictor) -> list[str]:
    """Return what the scores of a model depend on, besides the images."""
    return [
        pneumonia_hf.__version__,
        hash_weights(predictor) or predictor.name,
        *(_hash_settings(one.path) for one in predictor.networks),
        str(predictor.operating_point),
        str(predictor.temperature),
        str(predictor.tta),
        *(f"{one.class_index} {one.backend}" for one in predictor.networks),
    ]


def _hash_settings(folder: Path | None) -> str:
    """Return the hash of the files, besides the weights, that decide what a model says."""
    names = ("config.json", "preprocessor_config.json", GATE_FILE)
    files = [folder / name for name in names] if folder else []
    content = [one.read_bytes() for one in files if one.exists()]
    return hashlib.sha256(b"|".join(content)).hexdigest()


def hash_weights(predictor: Predictor) -> str:
    """Return the SHA-256 of the weights, joined by + for several files; empty if unknown."""
    digests = []
    for member in predictor.networks:
        files = find_weights(member.path) if member.path else []
        if not files:
            return ""
        digests += hash_files(files)
    return "+".join(digests)


def hash_files(files: Iterable[Path]) -> list[str]:
    """Return the SHA-256 of each file."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests


def explain_left_out(result: Prediction | XrayError, file: str) -> str | None:
    """Return why an image is not measured: it cannot be read, or is a mask; or else None."""
    if isinstance(result, XrayError):
        return str(result)
    return f"{file}: {Reason.MASK.value}" if Reason.MASK in result.reasons else None


def _predict(predictor: Predictor, data: Dataset, name: str, steps: Steps) -> dict[str, np.ndarray]:
    from tqdm.auto import tqdm

    def score(rows: Sequence[int]) -> Iterable[Prediction | XrayError]:
        found = predictor.predict_images(open_images(data.select(rows)), refuse=False)
        shown = {"unit": "image", "desc": name, "leave": False, "disable": not steps.is_main}
        return tqdm(found, total=len(rows), **shown)

    results = steps.share(score, len(data))
    faults = [explain_left_out(*pair) for pair in zip(results, data["file"][:], strict=True)]
    kept = [row for row, fault in enumerate(faults) if fault is None]
    predictions: list[Prediction] = [results[row] for row in kept]
    probabilities = np.array([one.probability for one in predictions], np.float64)
    return {
        "kept": np.array(kept, np.int64),
        "probabilities": probabilities,
        "distances": np.array([one.distance for one in predictions], np.float64),  # None: NaN
        "other": np.array([one.other_abnormal for one in predictions], np.float64),
        "decisions": np.array([one.decision for one in predictions], str),
        "by_input_checks": np.array([bool(one.reasons & OF_INPUT) for one in predictions], bool),
        "refused": np.array([bool(one.reasons & REFUSING) for one in predictions], bool),
        "unreadable": np.array([one for one in faults if one is not None], str),
    }
