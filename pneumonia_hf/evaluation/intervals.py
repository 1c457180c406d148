"""Intervals of a measured value: bootstrap over patients, BCa, and DeLong's of the AUROC."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MOST_UNDEFINED = 0.05  # of the draws of an interval, above which it is not defined
JACKKNIFE_GROUPS = 400  # of patients left out together, where there are more patients


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95% confidence interval; NaN if it is not defined."""

    value: float
    low: float
    high: float


def percentile_interval(value: float, draws: Sequence[float]) -> Interval:
    """Return a value with the 2.5th and 97.5th percentiles of its bootstrap draws.

    The ends are NaN if more than MOST_UNDEFINED of the draws are: what they leave would be chosen
    by being defined.
    """
    defined = [draw for draw in draws if not math.isnan(draw)]
    if len(draws) - len(defined) > MOST_UNDEFINED * len(draws):
        defined = []
    low, high = _percentiles(defined, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def draw_patients(
    labels: np.ndarray, patients: Sequence[str] | np.ndarray, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield the rows of each bootstrap resample of patients.

    A patient is drawn with all images. A resample that lacks a class of the data is drawn again:
    most metrics are not defined on it.
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


def bca_interval(value: float, draws: Sequence[float], left_out: Sequence[float]) -> Interval:
    """Return the bias-corrected and accelerated bootstrap interval (Efron 1987, JASA 82:171).

    Args:
        value: measured on all images.
        draws: the same of each bootstrap resample.
        left_out: the same without each patient, or group of patients, in turn (`leave_out`).

    Returns:
        The interval; its ends are NaN where the correction is not defined: the value is at the end
        of all draws, or does not depend on any patient.
    """
    from scipy.stats import norm

    draws, left_out = (np.asarray([x for x in of if math.isfinite(x)]) for of in (draws, left_out))
    if not len(draws) or len(left_out) < 2 or not math.isfinite(value):
        return Interval(float(value), math.nan, math.nan)
    # Draws that equal the value count by half: accuracies of few images often do.
    share = np.mean((draws < value) + 0.5 * (draws == value))
    distances = left_out.mean() - left_out
    spread = np.sum(distances**2) ** 1.5
    if share in (0, 1) or spread == 0:
        return Interval(float(value), math.nan, math.nan)
    bias, acceleration = norm.ppf(share), np.sum(distances**3) / (6 * spread)
    ends = bias + norm.ppf([0.025, 0.975])
    shares = norm.cdf(bias + ends / (1 - acceleration * ends))
    return Interval(float(value), *(float(x) for x in np.percentile(draws, shares * 100)))


def leave_out(patients: Sequence[str] | np.ndarray, seed: int = 13) -> Iterator[np.ndarray]:
    """Yield the rows that remain without each patient in turn, or each of JACKKNIFE_GROUPS."""
    _, numbers = np.unique(np.asarray(patients), return_inverse=True)
    count = numbers.max(initial=-1) + 1
    if count > JACKKNIFE_GROUPS:
        group = np.random.default_rng(seed).permutation(np.arange(count) % JACKKNIFE_GROUPS)
        numbers = group[numbers]
    for number in range(min(count, JACKKNIFE_GROUPS)):
        yield np.flatnonzero(numbers != number)


@dataclass(frozen=True)
class AurocDifference:
    """The difference of two models' AUROC on the same images."""

    difference: Interval  # of the first less the second
    p: float  # two-sided, that there is none; NaN if both rank all pairs alike


def delong_interval(
    labels: np.ndarray, scores: np.ndarray, patients: Sequence[str] | np.ndarray
) -> Interval:
    """Return the AUROC with the interval of DeLong et al. 1988 (Biometrics 44:837).

    The variance is that of Obuchowski 1997 (Biometrics 53:567) for several images of a patient,
    which is DeLong's if each patient has one. The interval ends at 0 and 1; it is NaN if fewer than
    two patients have a label.

    Args:
        labels: 0 or 1, [N].
        scores: any, higher for pneumonia, [N].
        patients: of each image, [N].
    """
    areas, covariance = _delong(labels, np.asarray(scores)[None], patients)
    return _normal_interval(areas[0], covariance[0, 0], 0, 1)


def compare_aurocs(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    patients: Sequence[str] | np.ndarray,
) -> AurocDifference:
    """Return the difference of two AUROCs on the same images, as `delong_interval` measures it."""
    from scipy.stats import norm

    areas, covariance = _delong(labels, np.stack([first, second]), patients)
    contrast = np.array([1, -1])
    difference, variance = contrast @ areas, contrast @ covariance @ contrast
    p = 2 * norm.sf(abs(difference) / math.sqrt(variance)) if variance > 0 else math.nan
    return AurocDifference(_normal_interval(difference, variance, -1, 1), float(p))


def _delong(
    labels: np.ndarray, scores: np.ndarray, patients: Sequence[str] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUROC of each row of `scores`, [M, N] -> [M], and their covariance, [M, M]."""
    from scipy.stats import rankdata

    labels = np.asarray(labels)
    ill, well = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    _, numbers = np.unique(np.asarray(patients), return_inverse=True)
    count = numbers.max(initial=-1) + 1
    areas, parts = [], []
    for one in scores:
        # The share of the other class that each image ranks right, ties by half (Sun and Xu 2014).
        ranks = rankdata(one)
        of_ill = (ranks[ill] - rankdata(one[ill])) / len(well)
        of_well = 1 - (ranks[well] - rankdata(one[well])) / len(ill)
        area = of_ill.mean()
        areas.append(area)
        parts.append(
            [
                np.bincount(numbers[rows], of_rows - area, minlength=count)
                for rows, of_rows in ((ill, of_ill), (well, of_well))
            ]
        )
    parts = np.array(parts)  # [M, 2, patients]
    clusters = [len(np.unique(numbers[rows])) for rows in (ill, well)]
    if min(clusters) < 2:
        return np.array(areas), np.full((len(areas), len(areas)), math.nan)
    covariance = np.zeros((len(areas), len(areas)))
    for kind, (rows, of_kind) in enumerate(zip((ill, well), clusters, strict=True)):
        sums = parts[:, kind]
        covariance += of_kind / (of_kind - 1) * sums @ sums.T / len(rows) ** 2
    # Zero if no patient has images of both labels.
    both = count / (count - 1) * parts[:, 0] @ parts[:, 1].T / (len(ill) * len(well))
    return np.array(areas), covariance + both + both.T


def _normal_interval(value: float, variance: float, lowest: float, highest: float) -> Interval:
    reach = 1.959963984540054 * math.sqrt(max(variance, 0)) if variance == variance else math.nan
    ends = (value - reach, value + reach)
    return Interval(float(value), *(float(np.clip(end, lowest, highest)) for end in ends))


def _percentiles(draws: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    if not len(draws):
        return tuple(math.nan for _ in shares)
    # Likelihood ratios may be infinite, and nothing can be interpolated between infinities.
    method = "linear" if np.isfinite(draws).all() else "nearest"
    return tuple(float(x) for x in np.percentile(draws, shares, method=method))
