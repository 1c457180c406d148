"""Checks of labels: class balance, patients with both labels, probable label errors."""

from __future__ import annotations

import numpy as np

from pneumonia_hf.audit.dataset import MOST_EXAMPLES, VERDICTS, Finding, Xrays, count_noun
from pneumonia_hf.labels import LABELS

SMALLEST_SHARE = 0.2  # of a class in a split
FALSE_ALARMS = 0.01  # rate of warnings about the shares of pneumonia in random splits
SUSPECTS_FAIL = 0.05  # share of the images
WEAK_FEATURES = 0.9  # AUROC below which the features are too weak to judge single labels


def check_balance(xrays: Xrays) -> Finding:
    """Class balance of each split: too few images of a class, or shares that differ by split."""
    counts = {
        name: np.bincount(xrays.label[xrays.split == number], minlength=len(LABELS))
        for number, name in enumerate(xrays.splits)
    }
    shares = {name: float(of[1] / max(of.sum(), 1)) for name, of in counts.items()}
    few = [name for name, share in shares.items() if min(share, 1 - share) < SMALLEST_SHARE]
    shift = max(shares.values()) - min(shares.values())
    chance = compare_shares(xrays.label, xrays.patient, xrays.split)
    verdict = "fail" if any(0 in of for of in counts.values()) else "warn" if few else "pass"
    text = "; ".join(
        f"{name} has {of[0]} {LABELS[0]} and {of[1]} {LABELS[1]} ({shares[name]:.1%} of all)"
        for name, of in counts.items()
    )
    if chance < FALSE_ALARMS:
        verdict = max(verdict, "warn", key=VERDICTS.index)
        text += (
            f"; the shares differ by {shift:.1%} between splits, more than random splits of these "
            f"patients do (p = {chance:.3g})"
        )
        few = few or list(counts)
    numbers = {name: {LABELS[0]: int(of[0]), LABELS[1]: int(of[1])} for name, of in counts.items()}
    examples = tuple({"part": name, **numbers[name]} for name in few)
    more = {"parts": numbers, "p_of_shift": round(chance, 4)}
    return Finding(verdict, len(few), f"{text}.", examples, more=more)


def compare_shares(
    label: np.ndarray, patient: np.ndarray, split: np.ndarray, draws: int = 999, seed: int = 0
) -> float:
    """Return the p-value of a permutation test of equal shares of pneumonia in the splits.

    Patients are permuted over the splits, each of which keeps its number of patients. The
    statistic is the chi-squared sum of the shares' distances from the overall share. `label` is 0
    or 1, `patient` and `split` are numbers, [N]. The p-value is 1 / (draws + 1) or more, and 1 for
    a single split.
    """
    units, of_unit = np.unique(np.stack([patient, split]), axis=1, return_inverse=True)
    of_unit = of_unit.ravel()  # a patient in two splits counts in each
    splits = units[1] - units[1].min(initial=0)
    size = np.bincount(of_unit).astype(np.float64)
    ill = np.bincount(of_unit, label)
    overall = ill.sum() / max(size.sum(), 1)
    if len(np.unique(splits)) < 2 or overall in (0, 1):
        return 1.0

    def distance(permuted: np.ndarray) -> float:
        images = np.bincount(permuted, size)
        found = np.bincount(permuted, ill)
        images, found = images[images > 0], found[images > 0]
        return float((images * (found / images - overall) ** 2).sum())

    seen = distance(splits)
    generator = np.random.default_rng(seed)
    as_far = sum(distance(generator.permutation(splits)) >= seen - 1e-9 for _ in range(draws))
    return (1 + as_far) / (1 + draws)


def check_patient_labels(xrays: Xrays) -> Finding:
    """Patients with images of both labels: ill at one time and well at another, or mislabelled."""
    cases = [one for one in xrays.issues if one.kind == "both_labels"]
    text = f"{count_noun(cases, 'patient')} with both labels."
    unknown = not cases and xrays.by_file_name
    if unknown:
        text = (
            "cannot be checked: patients are groups by file name, and the names differ by class, "
            "so no group can have both labels."
        )
    examples = tuple({"patient": one.file, "reason": one.reason} for one in cases[:MOST_EXAMPLES])
    more = {"patients": [one.file for one in cases]}
    return Finding("warn" if cases or unknown else "pass", len(cases), text, examples, more=more)


def check_label_suspects(xrays: Xrays) -> Finding:
    """Labels that cross-validated predictions from frozen features contradict (cleanlab)."""
    from pneumonia_hf.audit.label_errors import find_label_errors

    if xrays.features is None:
        return Finding("warn", 0, "not checked: no features were requested.")
    found = find_label_errors(xrays.images, xrays.label, xrays.related, xrays.features)
    if found is None:
        return Finding("warn", 0, "not checked: too few patients of a class.")
    rows, probabilities, area, features = found
    share = len(rows) / max(len(xrays), 1)
    given = xrays.label[rows]
    belief = np.where(given == 1, probabilities[rows], 1 - probabilities[rows])
    cases = [
        xrays.describe(row)
        | {"suggested": LABELS[1 - xrays.label[row]], "belief_in_label": round(float(p), 4)}
        for row, p in zip(rows, belief, strict=True)
    ]
    counts = {LABELS[label]: int(np.sum(given == label)) for label in range(len(LABELS))}
    weak = area < WEAK_FEATURES
    return Finding(
        "fail" if share > SUSPECTS_FAIL and not weak else "warn" if len(rows) else "pass",
        len(rows),
        f"{len(rows)} labels are doubtful, {counts[LABELS[0]]} {LABELS[0]} and "
        f"{counts[LABELS[1]]} {LABELS[1]} (features: {features}; cross-validated AUROC "
        f"{area:.3f}{': too low to judge single labels' if weak else ''}).",
        tuple(cases[:MOST_EXAMPLES]),
        more={
            "features": features,
            "auroc_of_features": round(area, 4),
            "files": [one["file"] for one in cases],
            "cases": cases,
        },
        shown=tuple(
            (int(row), f"{LABELS[xrays.label[row]]}? {p:.3f}")
            for row, p in zip(rows[:MOST_EXAMPLES], belief, strict=False)
        ),
    )
