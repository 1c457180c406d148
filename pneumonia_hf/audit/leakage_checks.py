"""Checks of leakage: duplicates and patients across splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pneumonia_hf.audit.dataset import MOST_EXAMPLES, Finding, Xrays, count_noun, finding_of_issues
from pneumonia_hf.labels import LABELS


def check_exact_duplicates(xrays: Xrays) -> Finding:
    """Images with equal decoded pixels."""
    return _check_groups(xrays, xrays.exact, "equal pixels")


def check_near_duplicates(xrays: Xrays) -> Finding:
    """Images of the same X-ray in different encodings, confirmed by correlation."""
    finding = _check_groups(xrays, xrays.near, "the same X-ray", beyond=xrays.exact)
    if not xrays.unseen_pairs:
        return finding
    omitted = f"{xrays.unseen_pairs} more pairs with similar hashes were not compared."
    return replace(finding, text=f"{finding.text[:-1]}; {omitted}")


def check_patient_overlap(xrays: Xrays) -> Finding:
    """Patients with images in more than one split."""
    places = np.unique(np.stack([xrays.patient, xrays.split]), axis=1)
    numbers, counts = np.unique(places[0], return_counts=True)
    shared = numbers[counts > 1]
    if len(xrays.splits) == 1:
        text = "the data has no splits yet; training splits it by patient."
    else:
        text = f"{count_noun(shared, 'patient')} in more than one split"
        text += ": metrics there are optimistically biased." if len(shared) else "."
    rows = np.flatnonzero(np.isin(xrays.patient, shared))
    examples = [
        {
            "patient": xrays.patient_name(number),
            "files": xrays.files(np.flatnonzero(xrays.patient == number)[:MOST_EXAMPLES]),
        }
        for number in shared[:MOST_EXAMPLES]
    ]
    return Finding(
        "fail" if len(shared) else "pass",
        len(shared),
        text,
        tuple(examples),
        more={
            "patients": [xrays.patient_name(number) for number in shared],
            "files": xrays.files(rows),
        },
    )


def check_unknown_patients(xrays: Xrays) -> Finding:
    """Files without a known patient; each counts as a separate patient."""
    cases = [one for one in xrays.issues if one.kind == "own_patient"]
    count = sum(one.count for one in cases)
    text = "the patient of every file is known."
    if count:
        text = (
            f"{count} files have no known patient: if several are of one patient, the splits may "
            f"share patients."
        )
    return finding_of_issues("warn" if count else "pass", cases, text, count)


def _check_groups(
    xrays: Xrays, groups: np.ndarray, what: str, beyond: np.ndarray | None = None
) -> Finding:
    """Report groups of two or more images; with `beyond`, only those that join its groups."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    several = [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
    if beyond is not None:
        several = [rows for rows in several if len(np.unique(beyond[rows])) > 1]

    def crosses(rows: np.ndarray) -> tuple[bool, ...]:
        columns = (xrays.split, xrays.label, xrays.patient)
        return tuple(len(np.unique(values[rows])) > 1 for values in columns)

    # The most harmful first.
    several.sort(key=lambda rows: (*(not one for one in crosses(rows)), rows.min()))
    totals = np.array([crosses(rows) for rows in several], int).reshape(-1, 3).sum(axis=0).tolist()
    counts = dict(zip(("across_parts", "across_labels", "across_patients"), totals, strict=True))
    files = [xrays.files(np.sort(rows)) for rows in several]
    if not several:
        more = counts | {"groups": [], "files": []}
        differing = "" if beyond is None else " with different pixels"
        return Finding("pass", 0, f"no two images{differing} show {what}.", more=more)
    nouns = zip(("splits", "labels", "patients"), totals, strict=True)
    details = ", ".join(f"{count} across {noun}" for noun, count in nouns if count)
    text = f"{sum(map(len, files))} images in {count_noun(several, 'group')} show {what}"
    examples = [
        {
            "files": names,
            "parts": sorted({xrays.splits[one] for one in xrays.split[rows]}),
            "labels": sorted({LABELS[one] for one in xrays.label[rows]}),
        }
        for rows, names in zip(several[:MOST_EXAMPLES], files, strict=False)
    ]
    shown = [
        (int(row), " ".join(list(xrays.describe(row).values())[1:]))
        for rows in several[: MOST_EXAMPLES // 2]
        for row in np.sort(rows)[:2]
    ]
    return Finding(
        "fail" if counts["across_parts"] else "warn",
        len(several),
        f"{text}: {details}." if details else f"{text}.",
        tuple(examples),
        more=counts | {"groups": files, "files": [name for names in files for name in names]},
        shown=tuple(shown),
    )
