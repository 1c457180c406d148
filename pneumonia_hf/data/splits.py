"""Patient-grouped splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.table import column, take
from pneumonia_hf.errors import UserError
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_TOLERANCE = 0.01  # between the share of the images that is asked for and that cut off
SPLIT_DRAWS = 200  # random orders of the patients that are tried


def split_by_patient(
    data: Dataset, fraction: float, seed: int, tolerance: float = SPLIT_TOLERANCE
) -> tuple[Dataset, Dataset]:
    """Return `data` in two splits, the second with `fraction` of the images, no patient in both.

    Patients are taken in random order until they have their share of the images: those with
    normals only, with pneumonias only and with both apart, so that classes keep their shares.

    Args:
        data: rows as `load_splits` returns them.
        fraction: of the images, above 0 and below 1.
        seed: of the order.
        tolerance: how far the share may be off.

    Raises:
        UserError: the share cannot be met within the tolerance, or a split would lack a class.
    """
    labels, patients = column(data, "label").to_numpy(), _number_patients(data)
    images = np.zeros((patients.max(initial=-1) + 1, len(LABELS)), np.int64)  # of each patient
    np.add.at(images, (patients, labels), 1)
    generator = np.random.default_rng(seed)
    # Whole patients rarely add up at once where they are few, or one has many images.
    draws = (_draw_patients(images, fraction, generator) for _ in range(SPLIT_DRAWS))
    best, best_error = None, np.inf
    for drawn in draws:
        of_both = images[drawn].sum(axis=0), images[~drawn].sum(axis=0)
        if any(np.any((of == 0) & (images.sum(axis=0) > 0)) for of in of_both):
            continue
        error = abs(of_both[0].sum() / len(labels) - fraction)
        if error < best_error:
            best, best_error = drawn, error
        if error <= tolerance / 10:
            break
    if best is None:
        counts = ", ".join(
            f"{np.sum(images[:, label] > 0)} with {name}" for label, name in enumerate(LABELS)
        )
        raise UserError(
            f"Too few patients ({counts}) to cut off {fraction:.1%} of the images with both "
            f"classes; give more images, or train/, val/ and test/ folders."
        )
    cut = best[patients]
    if best_error > tolerance + 1e-9:  # 0.16 - 0.15 is a little more than 0.01
        raise UserError(
            f"Whole patients cannot make up {fraction:.1%} of the {len(labels)} images; the "
            f"nearest share found is {cut.mean():.1%}. Ask for that with --validation_fraction "
            f"or --test_fraction, or give more patients."
        )
    return take(data, np.flatnonzero(~cut)), take(data, np.flatnonzero(cut))


def _draw_patients(
    images: np.ndarray, fraction: float, generator: np.random.Generator
) -> np.ndarray:
    """Return which patients make up `fraction` of the images in one random order: bool [P]."""
    drawn = np.zeros(len(images), bool)
    kinds = (images > 0) @ (1 << np.arange(images.shape[1]))
    left_over = 0.0  # images that the kinds before got too few of
    for kind in np.unique(kinds):
        rows = generator.permutation(np.flatnonzero(kinds == kind))
        totals = np.concatenate([[0], np.cumsum(images[rows].sum(axis=1))])
        wanted = fraction * totals[-1] + left_over
        count = int(np.argmin(np.abs(totals - wanted)))
        drawn[rows[:count]] = True
        left_over = wanted - totals[count]
    return drawn


def _number_patients(data: Dataset) -> np.ndarray:
    """Return a number for the patient of each row, in the order of their names: int64 [N]."""
    import pyarrow.compute as pc

    coded = pc.dictionary_encode(column(data, "patient"))
    order = pc.array_sort_indices(coded.dictionary).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks[coded.indices.to_numpy()]
