"""Patient-grouped splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.table import CLASS, column, take
from pneumonia_hf.errors import UserError
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_TOLERANCE = 0.01  # between the requested share of the images and the actual one
STRATIFYING = (CLASS, "view")  # columns, where a source has them
SPLIT_DRAWS = 200  # random orders of the patients to try


def split_by_patient(
    data: Dataset,
    fraction: float,
    seed: int,
    whole: int | None = None,
    flag: str = "--test_fraction",
) -> tuple[Dataset, Dataset]:
    """Divide `data` into two splits without a common patient; the second has the `fraction`.

    Patients are drawn in random order until they have their share of the images, stratified by
    their labels (NORMAL only, PNEUMONIA only, both) and by STRATIFYING of their first image, so
    that the classes keep their shares.

    `fraction`, above 0 and below 1, is met to within SPLIT_TOLERANCE. Both are shares of the
    images, or of `whole` images of which `data` is the rest. `flag` requests it.

    Raises:
        UserError: no draw meets the share within the tolerance, or a split would lack a class.
    """
    import pyarrow.compute as pc

    labels = column(data, "label").to_numpy()
    whole = whole or len(labels)
    requested, of_rest = fraction, whole / max(len(labels), 1)
    fraction, tolerance = requested * of_rest, SPLIT_TOLERANCE * of_rest
    ranks = pc.rank(column(data, "patient"), tiebreaker="dense").to_numpy()  # from 1
    patients = ranks.astype(np.int64) - 1
    images = np.zeros((patients.max(initial=-1) + 1, len(LABELS)), np.int64)  # of each patient
    np.add.at(images, (patients, labels), 1)
    strata = _find_strata(data, patients, images)
    generator = np.random.default_rng(seed)
    best, best_error = None, np.inf
    for _ in range(SPLIT_DRAWS):  # with few patients, one draw rarely meets the share
        drawn = _draw_patients(images, strata, fraction, generator)
        counts = images[drawn].sum(axis=0), images[~drawn].sum(axis=0)
        if any(np.any((count == 0) & (images.sum(axis=0) > 0)) for count in counts):
            continue
        error = abs(counts[0].sum() / len(labels) - fraction)
        if error < best_error:
            best, best_error = drawn, error
        if error <= tolerance / 10:
            break
    if best is None:
        counts = ", ".join(
            f"{np.sum(images[:, label] > 0)} with {name}" for label, name in enumerate(LABELS)
        )
        raise UserError(
            f"Too few patients ({counts}) to split off {requested:.1%} of the images with both "
            f"classes; give more images, or train/, val/ and test/ folders."
        )
    second = best[patients]
    if best_error > tolerance + 1e-9:  # in floating point, 0.16 - 0.15 exceeds 0.01
        share = second.sum() / whole
        raise UserError(
            f"Whole patients cannot make up {requested:.1%} of the {whole} images; the nearest "
            f"share found is {share:.1%}. Request that with {flag} {share:.3f}, or give more "
            f"patients."
        )
    return take(data, np.flatnonzero(~second)), take(data, np.flatnonzero(second))


def _find_strata(data: Dataset, patients: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the stratum of each patient: int [P]."""
    _, first = np.unique(patients, return_index=True)
    keys = [(images > 0) @ (1 << np.arange(images.shape[1]))]
    for name in STRATIFYING:
        if name in data.column_names:
            cells = np.array([cell or "" for cell in data[name][:]])
            keys.append(np.unique(cells, return_inverse=True)[1][first])
    return np.unique(np.stack(keys), axis=1, return_inverse=True)[1]


def _draw_patients(
    images: np.ndarray, strata: np.ndarray, fraction: float, generator: np.random.Generator
) -> np.ndarray:
    """Draw patients at random until they have `fraction` of the images: bool [P]."""
    drawn = np.zeros(len(images), bool)
    missing = 0.0  # images that earlier strata fell short of
    for stratum in np.unique(strata):
        rows = generator.permutation(np.flatnonzero(strata == stratum))
        totals = np.concatenate([[0], np.cumsum(images[rows].sum(axis=1))])
        wanted = fraction * totals[-1] + missing
        count = int(np.argmin(np.abs(totals - wanted)))
        drawn[rows[:count]] = True
        missing = wanted - totals[count]
    return drawn
