"""The 95% interval of a measured value, by a bootstrap over patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MOST_UNDEFINED = 0.05  # of the draws of an interval, above which it is not defined


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95% confidence interval; NaN if it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan


def percentile_interval(
    value: float, draws: Sequence[float], hits: np.ndarray | None = None
) -> Interval:
    """Return a value with the 2.5th and 97.5th percentiles of its bootstrap draws.

    The ends are NaN if more than MOST_UNDEFINED of the draws are: what they leave would be chosen
    by being defined. Where the draws are all equal, nothing was missed, or all: the bootstrap
    cannot draw errors that it has not seen. The share of `hits` then takes the exact binomial
    interval (Clopper and Pearson 1934, images as independent), and other values have none.
    """
    defined = [draw for draw in draws if not math.isnan(draw)]
    if not defined or len(draws) - len(defined) > MOST_UNDEFINED * len(draws):
        return Interval(float(value))
    # Likelihood ratios may be infinite, and nothing can be interpolated between infinities.
    method = "linear" if np.isfinite(defined).all() else "nearest"
    low, high = np.percentile(defined, [2.5, 97.5], method=method)
    if math.isclose(low, high, abs_tol=1e-12):
        if hits is None:
            return Interval(float(value))
        from scipy.stats import binomtest

        exact = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="exact")
        low, high = exact.low, exact.high
    return Interval(float(value), float(low), float(high))


def draw_patients(
    labels: np.ndarray, patients: Sequence[str] | np.ndarray, resamples: int, seed: int = 13
) -> Iterator[np.ndarray]:
    """Yield the rows of each bootstrap resample of patients.

    Patients are resampled and not images, since the images of one patient are alike: a patient is
    drawn with all images. A resample that lacks a class of the data is drawn again: most metrics
    are not defined on it.
    """
    generator = np.random.default_rng(seed)
    _, numbers, images = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    order = np.argsort(numbers, kind="stable")  # the images of each patient in turn
    starts = np.cumsum(images) - images
    kinds, classes = np.unique(np.asarray(labels), return_inverse=True)
    for _ in range(resamples):
        while True:
            drawn = generator.integers(len(images), size=len(images))
            sizes = images[drawn]
            before = np.cumsum(sizes) - sizes  # in the resample
            rows = order[np.arange(sizes.sum()) + np.repeat(starts[drawn] - before, sizes)]
            if np.bincount(classes[rows], minlength=len(kinds)).all():
                break
        yield rows


def bootstrap(
    measure: Callable[[np.ndarray], Sequence[float | np.ndarray]],
    count: int,
    resamples: Iterable[np.ndarray],
) -> list[Interval]:
    """Return each number that `measure` finds on `count` images, with its percentile interval.

    `measure` takes rows, and returns a share as the booleans whose mean it is; `resamples` are the
    rows of each resample, as of `draw_patients`.
    """
    values = measure(np.arange(count))
    draws = zip(*(map(mean, measure(rows)) for rows in resamples), strict=True)
    return [
        percentile_interval(mean(one), of, one if isinstance(one, np.ndarray) else None)
        for one, of in zip(values, draws, strict=True)
    ]


def mean(values: float | np.ndarray) -> float:
    """Return the mean of numbers or booleans; NaN of none."""
    return float(np.mean(values)) if np.size(values) else math.nan
