"""The data set under audit, and the finding of a check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.audit.near_duplicates import group_exact, group_near
from pneumonia_hf.data.issues import DataIssue
from pneumonia_hf.data.patients import named_by_file
from pneumonia_hf.data.pixel_store import XrayPixels
from pneumonia_hf.data.table import column
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from datasets import Dataset

    from pneumonia_hf.audit.label_errors import FeatureConfig

VERDICTS = ("fine", "look", "stop")
MOST_EXAMPLES = 12  # of a check, in audit.json and as thumbnails


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    verdict: str  # of VERDICTS
    count: int  # of what it looks for: images, groups, patients
    text: str  # a sentence
    examples: tuple[Any, ...] = ()  # the first or worst cases
    shown: tuple[tuple[int, str], ...] = ()  # images worth seeing, each with a caption
    more: dict[str, Any] = field(default_factory=dict)  # numbers and lists of its own


@dataclass
class Xrays:
    """All images of an audit, as columns, and what their sources were in issue with."""

    data: Dataset  # the rows of all parts, one part after the other
    splits: tuple[str, ...]
    split: np.ndarray  # int8 [N], places in `parts`
    images: XrayPixels
    issues: tuple[DataIssue, ...] = ()
    features: FeatureConfig | None = None  # what label suspects are looked for with
    unseen_pairs: int = 0  # of X-rays with like hashes, when too many were to be compared

    def __len__(self) -> int:
        return len(self.split)

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
        """Numbers of the groups of images with equal pixels: int64 [N]."""
        return group_exact(self.images.facts("pixels"))

    @cached_property
    def near(self) -> np.ndarray:
        """Numbers of the groups of images of one X-ray: int64 [N]."""
        groups, self.unseen_pairs = group_near(self.images, self.exact)
        return groups

    @cached_property
    def related(self) -> np.ndarray:
        """Numbers of the groups that share a patient or an X-ray: int64 [N].

        What is measured by cross-validation must not have one of a group on each side.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        xrays = self.near + self.patient.max(initial=0) + 1
        size = int(xrays.max(initial=0)) + 1
        links = coo_array((np.ones(len(self), bool), (self.patient, xrays)), shape=(size, size))
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
        """Return what people call the images at `rows`."""
        rows = [int(row) for row in rows]
        names = self._file_names
        return [names[row].as_py() for row in rows]

    @cached_property
    def _file_names(self) -> Any:
        return column(self.data, "file")

    def describe(self, row: int) -> dict[str, str]:
        """Return file, part and label of an image."""
        summary = {"file": self.files([row])[0]}
        if len(self.splits) > 1:
            summary["part"] = self.splits[self.split[row]]
        return summary | {"label": LABELS[self.label[row]]}


def finding_of_issues(
    verdict: str, cases: Sequence[DataIssue], text: str, count: int | None = None, **more: Any
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


def show_examples(
    xrays: Xrays, rows: np.ndarray, captions: Sequence[str] | None = None
) -> tuple[tuple[dict, ...], tuple[tuple[int, str], ...]]:
    """Return the first of some images as examples and as thumbnails."""
    first = rows[:MOST_EXAMPLES]
    captions = list(captions or [""] * len(rows))
    examples = tuple(
        xrays.describe(row) | ({"why": caption} if caption else {})
        for row, caption in zip(first, captions, strict=False)
    )
    return examples, tuple((int(r), c) for r, c in zip(first, captions, strict=False))


def count_noun(things: Sequence[Any] | np.ndarray, noun: str) -> str:
    count = len(things)
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
