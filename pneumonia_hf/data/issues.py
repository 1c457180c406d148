"""Data issues: problems with files and rows, and how they are logged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pneumonia_hf.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataIssue:
    """A problem with a file, row or patient."""

    kind: str  # a key of ISSUE_KINDS
    file: str  # the file or patient concerned
    reason: str
    count: int = 1  # of files; `file` is the first


ISSUE_KINDS = {
    "unreadable": "cannot be read as X-rays and are left out",
    "mask": "are masks and not X-rays, and are left out",
    "not_an_image": "are not images and are left out",
    "odd_name": "have names that are not valid UTF-8 and are left out",
    "closed_folder": "folder(s) cannot be opened and are left out",
    "unknown_label": "are neither NORMAL nor PNEUMONIA and are left out",
    "no_place": "are outside the split and class folders and are left out",
    "metadata_missing_file": "are listed in metadata.csv but do not exist",
    "metadata_left_out": "are not listed in metadata.csv",
    "metadata_other_label": "have a label in metadata.csv that contradicts their folder",
    "both_labels": "patient(s) have images of both labels",
    "own_patient": "do not name their patient: each counts as one",
    "system_file": "were created by an operating system and are left out",
}
NOT_STRICT = {"both_labels", "own_patient", "system_file"}  # of which --strict makes no error
FIRST_CASES = 3  # of each kind, in messages


def log_issues(issues: Iterable[DataIssue], strict: bool = False) -> None:
    """Log one line for each kind of issue, with the first few cases.

    Raises:
        UserError: with `strict`, if any issue is of a strict kind.
    """
    kinds: dict[str, list[DataIssue]] = {}
    for issue in issues:
        kinds.setdefault(issue.kind, []).append(issue)
    lines = {kind: _describe_issues(kind, cases) for kind, cases in kinds.items()}
    if strict and (counts := [line for kind, line in lines.items() if kind not in NOT_STRICT]):
        raise UserError(
            f"{' '.join(counts)} Fix or remove them, or leave out --strict to go on without them."
        )
    for kind, line in lines.items():
        if kind != "system_file":
            logger.warning("%s", line)


def _describe_issues(kind: str, cases: Sequence[DataIssue]) -> str:
    first = "; ".join(f"{one.file} ({one.reason})" for one in cases[:FIRST_CASES])
    count = sum(one.count for one in cases)
    more = "; ..." if count > min(len(cases), FIRST_CASES) else ""
    noun = "" if kind in ("both_labels", "closed_folder") else "file(s) "
    return f"{count} {noun}{ISSUE_KINDS[kind]}: {first}{more}."
