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

VERDICTS = ("pass", "warn", "fail")
MOST_EXAMPLES = 12  # of a check, in audit.json and as thumbnails


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    verdict: str  # of VERDICTS
    count: int  # of the images, groups or patients found
    text: str  # a sentence
    examples: tuple[Any, ...] = ()  # the first or worst cases
    shown: tuple[tuple[int, str], ...] = ()  # rows of images for thumbnails, with captions
    more: dict[str, Any] = field(default_factory=dict)  # further entries of audit.json


@dataclass
class Xrays:
    """All images of an audit, as columns, and the data issues of their sources."""

    data: Dataset  # the rows of all splits, one split after the other
    splits: tuple[str, ...]
    split: np.ndarray  # int8 [N], indices into `splits`
    images: XrayPixels
    issues: tuple[DataIssue, ...] = ()
    features: FeatureConfig | None = None  # for label suspects
    unseen_pairs: int = 0  # pairs with similar hashes that were not compared, being too many

    def __len__(self) -> int:
        return len(self.split)

    @cached_property
    def label(self) -> np.ndarray:
        """Class numbers: int64 [N]."""
        return column(self.data, "label").to_numpy()

    @cached_property
    def _coded_patients(self) -> Any:
        return column(self.data, "patient").dictionary_encode()

    @cached_property
    def _file_names(self) -> Any:
        return column(self.data, "file")

    @cached_property
    def patient(self) -> np.ndarray:
        """Patient numbers: int32 [N]."""
        return self._coded_patients.indices.to_numpy()

    @cached_property
    def exact(self) -> np.ndarray:
        """Group numbers of images with equal pixels: int64 [N]."""
        return group_exact(self.images.facts("pixels"))

    @cached_property
    def near(self) -> np.ndarray:
        """Group numbers of images of one X-ray: int64 [N]."""
        groups, self.unseen_pairs = group_near(self.images, self.exact)
        return groups

    @cached_property
    def related(self) -> np.ndarray:
        """Group numbers of images that share a patient or an X-ray: int64 [N].

        A cross-validation must not split such a group.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        xrays = self.near + self.patient.max(initial=0) + 1
        size = int(xrays.max(initial=0)) + 1
        links = coo_array((np.ones(len(self), bool), (self.patient, xrays)), shape=(size, size))
        return connected_components(links, directed=False)[1][self.patient]

    @cached_property
    def by_file_name(self) -> bool:
        """Whether patients are groups by file name, so that their number is a lower bound."""
        return named_by_file(self._coded_patients.dictionary.to_pylist())

    def patient_name(self, number: int) -> str:
        """Return the name of a patient."""
        return self._coded_patients.dictionary[int(number)].as_py()

    def files(self, rows: Iterable[int]) -> list[str]:
        """Return the file names of the images at `rows`."""
        return [self._file_names[int(row)].as_py() for row in rows]

    def describe(self, row: int) -> dict[str, str]:
        """Return file, split and label of an image."""
        split = {"part": self.splits[self.split[row]]} if len(self.splits) > 1 else {}
        return {"file": self.files([row])[0]} | split | {"label": LABELS[self.label[row]]}


def finding_of_issues(
    verdict: str, cases: Sequence[DataIssue], text: str, count: int | None = None, **more: Any
) -> Finding:
    """Return a finding whose cases are data issues; `count` is by default their number."""
    listed = [{"file": one.file, "reason": one.reason} for one in cases]
    more = {"files": [one.file for one in cases], "cases": listed} | more
    count = len(cases) if count is None else count
    return Finding(verdict, count, text, tuple(listed[:MOST_EXAMPLES]), more=more)


def finding_of_images(
    xrays: Xrays,
    rows: np.ndarray,
    text: str,
    captions: Sequence[str] = (),
    most: float = 0,
    **more: Any,
) -> Finding:
    """Return a finding whose cases are the images at `rows`, a warning if they are over `most`.

    Each image has a caption, if they are given.
    """
    captions = captions or [""] * len(rows)
    shown = [(int(row), why) for row, why in zip(rows[:MOST_EXAMPLES], captions, strict=False)]
    examples = [xrays.describe(row) | ({"why": why} if why else {}) for row, why in shown]
    more |= {"files": xrays.files(rows)}
    verdict = "warn" if len(rows) > most else "pass"
    return Finding(verdict, len(rows), text, tuple(examples), tuple(shown), more)


def count_noun(things: Sequence[Any] | np.ndarray, noun: str) -> str:
    """Return the number of things in words, such as `no images`."""
    count = len(things)
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
