"""Checks of labels: balance, both labels, probable label errors."""

from __future__ import annotations

import numpy as np

from pneumonia_hf.audit.dataset import (
    MOST_EXAMPLES,
    VERDICTS,
    Finding,
    Xrays,
    count_noun,
    finding_of_issues,
)
from pneumonia_hf.labels import LABELS

SMALLEST_SHARE = 0.2  # of a class in a part
FALSE_ALARMS = 0.01  # how often random splits are said to differ in their shares of pneumonia
SUSPECTS_STOP = 0.05  # share of the images
WEAK_FEATURES = 0.9  # AUROC below which features say more of themselves than of the labels


def check_balance(xrays: Xrays) -> Finding:
    """Classes in each part: too few of one, or shares that differ between parts."""
    counts = {
        name: np.bincount(xrays.label[xrays.split == number], minlength=len(LABELS))
        for number, name in enumerate(xrays.splits)
    }
    shares = {name: float(of[1] / max(of.sum(), 1)) for name, of in counts.items()}
    few = [name for name, share in shares.items() if min(share, 1 - share) < SMALLEST_SHARE]
    shift = max(shares.values()) - min(shares.values())
    chance = compare_shares(xrays.label, xrays.patient, xrays.split)
    verdict = "stop" if any(0 in of for of in counts.values()) else "look" if few else "fine"
    summary = "; ".join(
        f"{name} has {of[0]} {LABELS[0]} and {of[1]} {LABELS[1]} ({shares[name]:.1%} of all)"
        for name, of in counts.items()
    )
    if chance < FALSE_ALARMS:
        verdict = max(verdict, "look", key=VERDICTS.index)
        summary += (
            f"; the shares differ by {shift:.1%} between splits, more than splitting these "
            f"patients at random explains (p = {chance:.3g})"
        )
        few = few or list(counts)
    numbers = {name: {LABELS[0]: int(of[0]), LABELS[1]: int(of[1])} for name, of in counts.items()}
    examples = tuple({"part": name, **numbers[name]} for name in few)
    more = {"parts": numbers, "p_of_shift": round(chance, 4)}
    return Finding(verdict, len(few), f"{summary}.", examples, more=more)


def compare_shares(
    label: np.ndarray, patient: np.ndarray, split: np.ndarray, draws: int = 999, seed: int = 0
) -> float:
    """Return how likely splits of the same sizes differ so much in their share of pneumonia.

    A permutation test: whole patients are dealt to the splits anew, each split getting as many
    patients as it has. What is compared is the chi-squared sum of the shares' distances from
    that of all.

    Args:
        label: 0 or 1, [N].
        patient, split: numbers that stand for the patient and the split, [N].
        draws: random deals.
        seed: of the deals.

    Returns:
        The p-value, 1 / (draws + 1) or more; 1 where there is one split only.
    """
    units, of_unit = np.unique(np.stack([patient, split]), axis=1, return_inverse=True)
    of_unit = of_unit.ravel()  # a patient in two splits counts in each
    splits = units[1] - units[1].min(initial=0)
    size = np.bincount(of_unit).astype(np.float64)
    ill = np.bincount(of_unit, label)
    overall = ill.sum() / max(size.sum(), 1)
    if len(np.unique(splits)) < 2 or overall in (0, 1):
        return 1.0

    def distance(dealt: np.ndarray) -> float:
        images = np.bincount(dealt, size)
        found = np.bincount(dealt, ill)
        images, found = images[images > 0], found[images > 0]
        return float((images * (found / images - overall) ** 2).sum())

    seen = distance(splits)
    generator = np.random.default_rng(seed)
    as_far = sum(distance(generator.permutation(splits)) >= seen - 1e-9 for _ in range(draws))
    return (1 + as_far) / (1 + draws)


def check_patient_labels(xrays: Xrays) -> Finding:
    """Patients with images of both labels: ill at one time, well at another, or mistaken."""
    cases = [one for one in xrays.issues if one.kind == "both_labels"]
    text = f"{count_noun(cases, 'patient')} with both labels"
    if not cases and xrays.by_file_name:
        text = (
            "not to be seen: patients are groups by file name, and the names differ by class, so "
            "no group can have both labels"
        )
    finding = finding_of_issues("look" if cases else "fine", cases, f"{text}.")
    examples = tuple({"patient": one.file, "reason": one.reason} for one in cases[:MOST_EXAMPLES])
    patients = [one.file for one in cases]
    return Finding(
        finding.verdict, finding.count, finding.text, examples, more={"patients": patients}
    )


def check_label_suspects(xrays: Xrays) -> Finding:
    """Labels that cross-validated predictions from frozen features speak against (cleanlab)."""
    from pneumonia_hf.audit.label_errors import find_label_errors

    if xrays.features is None:
        return Finding("look", 0, "not looked for, as no features were asked for.")
    found = find_label_errors(xrays.images, xrays.label, xrays.related, xrays.features)
    if found is None:
        return Finding("look", 0, "too few patients of a class to look for wrong labels.")
    rows, probabilities, area, means = found
    share = len(rows) / max(len(xrays), 1)
    given = xrays.label[rows]
    belief = np.where(given == 1, probabilities[rows], 1 - probabilities[rows])
    cases = [
        xrays.describe(row)
        | {"suggested": LABELS[1 - xrays.label[row]], "belief_in_label": round(float(p), 4)}
        for row, p in zip(rows, belief, strict=True)
    ]
    counts = {LABELS[label]: int(np.sum(given == label)) for label in range(len(LABELS))}
    text = (
        f"{len(rows)} labels are doubtful, {counts[LABELS[0]]} {LABELS[0]} and "
        f"{counts[LABELS[1]]} {LABELS[1]} (features: {means}; their cross-validated AUROC "
        f"is {area:.3f})."
    )
    weak = area < WEAK_FEATURES
    if weak:
        text = f"{text[:-1]}: too low to judge single labels by them."
    return Finding(
        "stop" if share > SUSPECTS_STOP and not weak else "look" if len(rows) else "fine",
        len(rows),
        text,
        tuple(cases[:MOST_EXAMPLES]),
        more={
            "features": means,
            "auroc_of_features": round(area, 4),
            "files": [one["file"] for one in cases],
            "cases": cases,
        },
        shown=tuple(
            (int(row), f"{LABELS[xrays.label[row]]}? {p:.3f}")
            for row, p in zip(rows[:MOST_EXAMPLES], belief, strict=False)
        ),
    )
