"""The checks of the audit: each looks at all pictures at once and ends in a verdict.

A new check is one function and one entry of CHECKS; report, training and tests go by the dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf import gate
from pneumonia_hf.duplicates import group_exact, group_near
from pneumonia_hf.rows import LABELS, OWN_COLUMNS, TROUBLES, Trouble, column, named_by_file
from pneumonia_hf.store import XrayPixels

if TYPE_CHECKING:
    from datasets import Dataset

    from pneumonia_hf.suspects import FeatureConfig

VERDICTS = ("fine", "look", "stop")
MOST_EXAMPLES = 12  # of a check, in audit.json and as thumbnails

SMALLEST_SHARE = 0.2  # of a class in a part
FALSE_ALARMS = 0.01  # how often random splits are said to differ in their shares of pneumonia
WHITE_SHARE = 0.1  # of saturated pixels; real films have up to 0.04
DARK, BRIGHT = 40.0, 220.0  # mean grey levels; real films have 60 to 200
FEW = 0.01  # share of the pictures up to which oddities of exposure are no matter
UNREADABLE_STOP = 0.05  # share of the files
SUSPECTS_STOP = 0.05  # share of the pictures
WEAK_FEATURES = 0.9  # AUROC below which features say more of themselves than of the labels
# Lower end of the 95% interval of the AUROC with which something beside the lungs tells the class.
SHORTCUT_LOOK, SHORTCUT_STOP = 0.6, 0.9


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    verdict: str  # of VERDICTS
    count: int  # of what it looks for: pictures, groups, patients
    text: str  # a sentence
    examples: tuple[Any, ...] = ()  # the first or worst cases
    shown: tuple[tuple[int, str], ...] = ()  # pictures worth seeing, each with a caption
    more: dict[str, Any] = field(default_factory=dict)  # numbers and lists of its own


@dataclass
class Xrays:
    """All pictures of an audit, as columns, and what their sources were in trouble with."""

    data: Dataset  # the rows of all parts, one part after the other
    parts: tuple[str, ...]
    part: np.ndarray  # int8 [N], places in `parts`
    pictures: XrayPixels
    troubles: tuple[Trouble, ...] = ()
    features: FeatureConfig | None = None  # what label suspects are looked for with
    unseen_pairs: int = 0  # of films with like hashes, when too many were to be compared

    def __len__(self) -> int:
        return len(self.part)

    @cached_property
    def label(self) -> np.ndarray:
        """Class numbers: int64 [N]."""
        return column(self.data, "label").to_numpy()

    @cached_property
    def patient(self) -> np.ndarray:
        """Numbers that stand for the patients: int32 [N]."""
        coded = column(self.data, "patient").dictionary_encode()
        self._patient_names = coded.dictionary
        return coded.indices.to_numpy()

    @cached_property
    def exact(self) -> np.ndarray:
        """Numbers of the groups of pictures with equal pixels: int64 [N]."""
        return group_exact(self.pictures.facts("pixels"))

    @cached_property
    def near(self) -> np.ndarray:
        """Numbers of the groups of pictures of one film: int64 [N]."""
        groups, self.unseen_pairs = group_near(self.pictures, self.exact)
        return groups

    @cached_property
    def related(self) -> np.ndarray:
        """Numbers of the groups that share a patient or a film: int64 [N].

        What is measured by cross-validation must not have one of a group on each side.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        films = self.near + self.patient.max(initial=0) + 1
        size = int(films.max(initial=0)) + 1
        links = coo_array((np.ones(len(self), bool), (self.patient, films)), shape=(size, size))
        return connected_components(links, directed=False)[1][self.patient]

    @cached_property
    def by_file_name(self) -> bool:
        """Whether patients are groups by file name, so that there are at least as many."""
        _ = self.patient
        return named_by_file(self._patient_names.to_pylist())

    def patient_name(self, number: int) -> str:
        """Return the patient that a number stands for."""
        _ = self.patient
        return self._patient_names[int(number)].as_py()

    def files(self, rows: Iterable[int]) -> list[str]:
        """Return what people call the pictures at `rows`."""
        rows = [int(row) for row in rows]
        names = self._file_names
        return [names[row].as_py() for row in rows]

    @cached_property
    def _file_names(self) -> Any:
        return column(self.data, "file")

    def describe(self, row: int) -> dict[str, str]:
        """Return file, part and label of a picture."""
        told = {"file": self.files([row])[0]}
        if len(self.parts) > 1:
            told["part"] = self.parts[self.part[row]]
        return told | {"label": LABELS[self.label[row]]}


def check_balance(xrays: Xrays) -> Finding:
    """Classes in each part: too few of one, or shares that differ between parts."""
    counts = {
        name: np.bincount(xrays.label[xrays.part == number], minlength=len(LABELS))
        for number, name in enumerate(xrays.parts)
    }
    shares = {name: float(of[1] / max(of.sum(), 1)) for name, of in counts.items()}
    few = [name for name, share in shares.items() if min(share, 1 - share) < SMALLEST_SHARE]
    shift = max(shares.values()) - min(shares.values())
    chance = compare_shares(xrays.label, xrays.patient, xrays.part)
    verdict = "stop" if any(0 in of for of in counts.values()) else "look" if few else "fine"
    told = "; ".join(
        f"{name} has {of[0]} {LABELS[0]} and {of[1]} {LABELS[1]} ({shares[name]:.1%} of all)"
        for name, of in counts.items()
    )
    if chance < FALSE_ALARMS:
        verdict = max(verdict, "look", key=VERDICTS.index)
        told += (
            f"; the shares differ by {shift:.1%} between splits, more than splitting these "
            f"patients at random explains (p = {chance:.3g})"
        )
        few = few or list(counts)
    numbers = {name: {LABELS[0]: int(of[0]), LABELS[1]: int(of[1])} for name, of in counts.items()}
    examples = tuple({"part": name, **numbers[name]} for name in few)
    more = {"parts": numbers, "p_of_shift": round(chance, 4)}
    return Finding(verdict, len(few), f"{told}.", examples, more=more)


def compare_shares(
    label: np.ndarray, patient: np.ndarray, part: np.ndarray, draws: int = 999, seed: int = 0
) -> float:
    """Return how likely splits of the same sizes differ so much in their share of pneumonia.

    A permutation test: whole patients are dealt to the splits anew, each split getting as many
    patients as it has. What is compared is the chi-squared sum of the shares' distances from
    that of all.

    Args:
        label: 0 or 1, [N].
        patient, part: numbers that stand for the patient and the split, [N].
        draws: random deals.
        seed: of the deals.

    Returns:
        The p-value, 1 / (draws + 1) or more; 1 where there is one split only.
    """
    units, of_unit = np.unique(np.stack([patient, part]), axis=1, return_inverse=True)
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


def check_sizes(xrays: Xrays) -> Finding:
    """Sizes and shapes: pictures too small or too long to be chest films."""
    width = xrays.pictures.facts("width").astype(np.float64)
    height = xrays.pictures.facts("height").astype(np.float64)
    small = np.minimum(width, height) < gate.SMALLEST_SIDE
    long = np.maximum(width, height) > gate.LONGEST_SHAPE * np.minimum(width, height)
    odd = np.flatnonzero(small | long)
    ratio = width / height
    coded, counts = np.unique(
        width.astype(np.uint64) << 32 | height.astype(np.uint64), return_counts=True
    )
    common = {
        f"{one >> 32}x{one & 0xFFFFFFFF}": int(count)
        for one, count in sorted(
            zip(coded.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]
        )[:10]
    }
    if len(coded) == 1:
        text = f"all are {next(iter(common))}"
    else:
        text = (
            f"{len(coded)} sizes, from {int(width.min())}x{int(height.min())} (least sides) to "
            f"{int(width.max())}x{int(height.max())} (greatest), "
            f"width to height {ratio.min():.2f} to {ratio.max():.2f}"
        )
    if len(odd):
        text += f"; {len(odd)} are too small or too long for a chest film"
    return Finding(
        "look" if len(odd) else "fine",
        len(odd),
        f"{text}.",
        *_show(xrays, odd, [f"{int(width[row])}x{int(height[row])}" for row in odd]),
        more={
            "sizes": common,
            "aspect_ratio": _quantiles(ratio),
            "files": xrays.files(odd),
        },
    )


def check_modes(xrays: Xrays) -> Finding:
    """How pictures are stored: kinds of file, bits and colour; coloured ones are no X-rays."""
    coloured = np.flatnonzero(xrays.pictures.facts("coloured"))
    formats, modes = xrays.pictures.facts("format"), xrays.pictures.facts("mode")
    kinds: dict[str, int] = {}
    for name in np.unique(formats):
        for mode, count in zip(*np.unique(modes[formats == name], return_counts=True), strict=True):
            kinds[f"{name.decode()} {mode.decode()}".strip()] = int(count)
    text = ", ".join(f"{count} {name}" for name, count in kinds.items())
    if len(coloured):
        text += f"; {len(coloured)} are coloured"
    return Finding(
        "look" if len(coloured) else "fine",
        len(coloured),
        f"{text}.",
        *_show(xrays, coloured),
        more={"kinds": kinds, "files": xrays.files(coloured)},
    )


def check_brightness(xrays: Xrays) -> Finding:
    """Mean grey level: films that are nearly black or nearly white."""
    mean = xrays.pictures.facts("mean").astype(np.float64)
    odd = np.flatnonzero((mean < DARK) | (mean > BRIGHT))
    of_class = [float(mean[xrays.label == label].mean()) for label in np.unique(xrays.label)]
    low, middle, high = np.percentile(mean, [5, 50, 95]) if len(mean) else (0, 0, 0)
    told = " and ".join(
        f"{value:.0f} in {LABELS[label]}"
        for value, label in zip(of_class, np.unique(xrays.label), strict=True)
    )
    text = f"mean grey level {middle:.0f} (5% to 95%: {low:.0f} to {high:.0f}); {told}"
    if len(odd):
        text += f"; {_count(odd, 'picture')} below {DARK:.0f} or above {BRIGHT:.0f}"
    return Finding(
        "look" if len(odd) > FEW * len(mean) else "fine",
        len(odd),
        f"{text}.",
        *_show(xrays, odd, [f"mean {mean[row]:.0f}" for row in odd]),
        more={"mean": _quantiles(mean), "files": xrays.files(odd)},
    )


def check_saturated(xrays: Xrays) -> Finding:
    """Pictures in which a large share of the pixels is white to the limit."""
    white = xrays.pictures.facts("white").astype(np.float64)
    odd = np.flatnonzero(white > WHITE_SHARE)
    odd = odd[np.argsort(-white[odd], kind="stable")]
    return Finding(
        "look" if len(odd) > FEW * len(white) else "fine",
        len(odd),
        f"{_count(odd, 'picture')} with more than {WHITE_SHARE:.0%} white pixels.",
        *_show(xrays, odd, [f"{white[row]:.0%} white" for row in odd]),
        more={"white": _quantiles(white), "files": xrays.files(odd)},
    )


def check_blank(xrays: Xrays) -> Finding:
    """Pictures with nothing in them."""
    std = xrays.pictures.facts("std")
    blank = np.flatnonzero(std < gate.LEAST_SPREAD)
    return Finding(
        "look" if len(blank) else "fine",
        len(blank),
        f"{_count(blank, 'blank picture')}.",
        *_show(xrays, blank),
        more={"files": xrays.files(blank)},
    )


def check_unreadable(xrays: Xrays) -> Finding:
    """Files that are taken for X-rays by their name and cannot be read."""
    cases = [one for one in xrays.troubles if one.kind == "unreadable"]
    share = len(cases) / max(len(xrays) + len(cases), 1)
    verdict = "stop" if share > UNREADABLE_STOP else "look" if cases else "fine"
    text = f"{_count(cases, 'file')} cannot be read" if cases else "every file can be read"
    return _from_troubles(verdict, cases, f"{text}.")


def check_strays(xrays: Xrays) -> Finding:
    """Files that are left out: no pictures, or of neither class."""
    kinds = ("not_a_picture", "odd_name", "unknown_label", "no_place", "system_file")
    cases = [one for one in xrays.troubles if one.kind in kinds]
    counts = {kind: sum(one.kind == kind for one in cases) for kind in kinds}
    told = "; ".join(f"{n} {TROUBLES[kind].title}" for kind, n in counts.items() if n)
    matter = any(TROUBLES[one.kind].strict for one in cases)
    return _from_troubles(
        "look" if matter else "fine", cases, f"{told or 'nothing is left out'}.", kinds=counts
    )


def check_metadata(xrays: Xrays) -> Finding:
    """Where metadata.csv and the folder disagree."""
    cases = [one for one in xrays.troubles if one.kind.startswith("metadata_")]
    kinds = dict.fromkeys(one.kind for one in cases)
    told = "; ".join(
        f"{sum(one.kind == kind for one in cases)} files {TROUBLES[kind].title}" for kind in kinds
    )
    return _from_troubles(
        "look" if cases else "fine",
        cases,
        f"{told or 'no metadata.csv disagrees with its folder'}.",
    )


def check_exact_duplicates(xrays: Xrays) -> Finding:
    """Pictures whose decoded pixels are the same."""
    return _check_groups(xrays, xrays.exact, "equal pixels")


def check_near_duplicates(xrays: Xrays) -> Finding:
    """Pictures that show the same film, stored in another way; confirmed by correlation."""
    finding = _check_groups(
        xrays, xrays.near, "the same film, stored otherwise", beyond=xrays.exact
    )
    if not xrays.unseen_pairs:
        return finding
    text = (
        f"{finding.text[:-1]}; {xrays.unseen_pairs} more pairs with like hashes were not compared."
    )
    return replace(finding, text=text)


def check_patient_overlap(xrays: Xrays) -> Finding:
    """Patients with pictures in more than one part."""
    places = np.unique(np.stack([xrays.patient, xrays.part]), axis=1)
    numbers, counts = np.unique(places[0], return_counts=True)
    shared = numbers[counts > 1]
    if len(xrays.parts) == 1:
        text = "the data is not parted yet; training parts it by patient."
    elif len(shared):
        text = (
            f"{_count(shared, 'patient')} in more than one split: what is measured there is "
            f"optimistically biased."
        )
    else:
        text = "no patient is in two parts."
    rows = np.flatnonzero(np.isin(xrays.patient, shared))
    examples = [
        {
            "patient": xrays.patient_name(number),
            "files": xrays.files(np.flatnonzero(xrays.patient == number)[:MOST_EXAMPLES]),
        }
        for number in shared[:MOST_EXAMPLES]
    ]
    return Finding(
        "stop" if len(shared) else "fine",
        len(shared),
        text,
        tuple(examples),
        more={
            "patients": [xrays.patient_name(number) for number in shared],
            "files": xrays.files(rows),
        },
    )


def check_patient_labels(xrays: Xrays) -> Finding:
    """Patients with pictures of both labels: ill at one time, well at another, or mistaken."""
    cases = [one for one in xrays.troubles if one.kind == "both_labels"]
    text = f"{_count(cases, 'patient')} with both labels"
    if not cases and xrays.by_file_name:
        text = (
            "not to be seen: patients are groups by file name, and the names differ by class, so "
            "no group can have both labels"
        )
    finding = _from_troubles("look" if cases else "fine", cases, f"{text}.")
    examples = tuple({"patient": one.file, "reason": one.reason} for one in cases[:MOST_EXAMPLES])
    patients = [one.file for one in cases]
    return Finding(
        finding.verdict, finding.count, finding.text, examples, more={"patients": patients}
    )


def check_unknown_patients(xrays: Xrays) -> Finding:
    """Files that do not tell their patient: each counts as a patient of its own."""
    cases = [one for one in xrays.troubles if one.kind == "own_patient"]
    count = sum(one.count for one in cases)
    text = (
        f"{count} files do not tell whose they are: if one patient has several of them, "
        f"the parts may share patients"
        if count
        else "every file tells its patient"
    )
    return _from_troubles("look" if count else "fine", cases, f"{text}.", count=count)


def check_label_suspects(xrays: Xrays) -> Finding:
    """Labels that cross-validated predictions from frozen features speak against (cleanlab)."""
    from pneumonia_hf.suspects import find_suspects

    if xrays.features is None:
        return Finding("look", 0, "not looked for, as no features were asked for.")
    found = find_suspects(xrays.pictures, xrays.label, xrays.related, xrays.features)
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


def check_shortcuts(xrays: Xrays) -> Finding:
    """How well the class is told by what is not in the lungs, each alone, by patient.

    The border is the outer 4% of the picture: arms, neck and belly, markers, and how the film was
    cut.
    """
    from pneumonia_hf.suspects import measure_shortcuts

    extras = {
        name: column(xrays.data, name).to_pandas().to_numpy()
        for name in xrays.data.column_names
        if _is_extra(xrays, name)
    }
    areas, passed_over = measure_shortcuts(xrays.pictures, xrays.label, xrays.related, extras)
    if not areas:
        return Finding("look", 0, "too few patients of a class to measure shortcuts.")
    strong = {name: one for name, one in areas.items() if one["low"] >= SHORTCUT_LOOK}
    # A network does not see metadata: what that tells, the picture may tell, or may not.
    worst = max(one["low"] for name, one in areas.items() if not name.startswith("metadata:"))
    told = ", ".join(
        f"{name} {one['auroc']:.3f}"
        for name, one in sorted(areas.items(), key=lambda pair: -pair[1]["auroc"])
    )
    return Finding(
        "stop" if worst >= SHORTCUT_STOP else "look" if strong else "fine",
        len(strong),
        f"AUROC by the picture's {told}.",
        tuple({"shortcut": name, **one} for name, one in strong.items()),
        more={"auroc": areas, "not_measured": passed_over},
    )


CHECKS: dict[str, Callable[[Xrays], Finding]] = {
    "balance": check_balance,
    "sizes": check_sizes,
    "modes": check_modes,
    "brightness": check_brightness,
    "saturated": check_saturated,
    "blank": check_blank,
    "unreadable": check_unreadable,
    "strays": check_strays,
    "metadata": check_metadata,
    "exact_duplicates": check_exact_duplicates,
    "near_duplicates": check_near_duplicates,
    "patient_overlap": check_patient_overlap,
    "patient_labels": check_patient_labels,
    "unknown_patients": check_unknown_patients,
    "label_suspects": check_label_suspects,
    "shortcuts": check_shortcuts,
}


def _check_groups(
    xrays: Xrays, groups: np.ndarray, what: str, beyond: np.ndarray | None = None
) -> Finding:
    """Report groups of two and more; with `beyond`, those that hold more than one of its groups."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    several = [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
    if beyond is not None:
        several = [rows for rows in several if len(np.unique(beyond[rows])) > 1]
    crossing = {
        "across_parts": [len(np.unique(xrays.part[rows])) > 1 for rows in several],
        "across_labels": [len(np.unique(xrays.label[rows])) > 1 for rows in several],
        "across_patients": [len(np.unique(xrays.patient[rows])) > 1 for rows in several],
    }
    counts = {name: int(np.sum(flags)) for name, flags in crossing.items()}
    # Those first that do most harm.
    ranks = sorted(
        range(len(several)),
        key=lambda at: (*(not flags[at] for flags in crossing.values()), several[at].min()),
    )
    several = [np.sort(several[at]) for at in ranks]
    files = sum(len(rows) for rows in several)
    if not several:
        return Finding(
            "fine", 0, f"no two pictures show {what}.", more=counts | {"groups": [], "files": []}
        )
    told = ", ".join(
        f"{n} with {name.replace('across_', 'different ')}" for name, n in counts.items() if n
    )
    text = f"{files} pictures in {_count(several, 'group')} show {what}" + (
        f": {told}" if told else ""
    )
    examples = [
        {
            "files": xrays.files(rows),
            "parts": sorted({xrays.parts[one] for one in xrays.part[rows]}),
            "labels": sorted({LABELS[one] for one in xrays.label[rows]}),
        }
        for rows in several[:MOST_EXAMPLES]
    ]
    shown = [
        (int(row), " ".join(list(xrays.describe(row).values())[1:]))
        for rows in several[: MOST_EXAMPLES // 2]
        for row in rows[:2]
    ]
    return Finding(
        "stop" if counts["across_parts"] else "look",
        len(several),
        f"{text}.",
        tuple(examples),
        more=counts
        | {
            "groups": [xrays.files(rows) for rows in several],
            "files": [name for rows in several for name in xrays.files(rows)],
        },
        shown=tuple(shown),
    )


def _from_troubles(
    verdict: str, cases: Sequence[Trouble], text: str, count: int | None = None, **more: Any
) -> Finding:
    examples = tuple({"file": one.file, "reason": one.reason} for one in cases[:MOST_EXAMPLES])
    found = {"file": [one.file for one in cases], "reason": [one.reason for one in cases]}
    listed = [{"file": f, "reason": r} for f, r in zip(*found.values(), strict=True)]
    return Finding(
        verdict,
        len(cases) if count is None else count,
        text,
        examples,
        more={"files": found["file"], "cases": listed} | more,
    )


def _show(
    xrays: Xrays, rows: np.ndarray, captions: Sequence[str] | None = None
) -> tuple[tuple[dict, ...], tuple[tuple[int, str], ...]]:
    """Return the first of some pictures as examples and as thumbnails."""
    first = rows[:MOST_EXAMPLES]
    captions = list(captions or [""] * len(rows))
    examples = tuple(
        xrays.describe(row) | ({"why": caption} if caption else {})
        for row, caption in zip(first, captions, strict=False)
    )
    return examples, tuple((int(r), c) for r, c in zip(first, captions, strict=False))


def _count(things: Sequence[Any] | np.ndarray, noun: str) -> str:
    count = len(things)
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    marks = (0, 5, 25, 50, 75, 95, 100)
    return {
        f"{mark}%": round(float(one), 4)
        for mark, one in zip(marks, np.percentile(values, marks), strict=True)
    }


def _is_extra(xrays: Xrays, name: str) -> bool:
    """Return whether a column may be a shortcut: metadata, or the source where there are some."""
    import pyarrow.compute as pc

    if name == "source":
        return pc.count_distinct(column(xrays.data, name)).as_py() > 1
    return name not in OWN_COLUMNS
