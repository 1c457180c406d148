"""Data issues: what is wrong with a file or row, and how it is logged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pneumonia_hf.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataIssue:
    """Something in the data that is not as it should be."""

    kind: str  # a key of TROUBLES
    file: str  # the image, file or patient that it is about
    reason: str
    count: int = 1  # of files, where `file` is only the first of them


@dataclass(frozen=True)
class IssueKind:
    """What one kind of issue is called, and whether --strict makes an error of it."""

    title: str
    strict: bool = True


ISSUE_KINDS = {
    "unreadable": IssueKind("cannot be read as X-rays, and are left out"),
    "not_an_image": IssueKind("are no images by their names, and are left out"),
    "odd_name": IssueKind("have names that are no text (UTF-8), and are left out"),
    "closed_folder": IssueKind("are folders that cannot be opened, and are left out"),
    "unknown_label": IssueKind("are neither NORMAL nor PNEUMONIA, and are left out"),
    "no_place": IssueKind("lie where no part and no class is, and are left out"),
    "metadata_missing_file": IssueKind("are named by metadata.csv, but are not there"),
    "metadata_left_out": IssueKind("are left out of metadata.csv"),
    "metadata_other_label": IssueKind("have another label in metadata.csv than by their folder"),
    "both_labels": IssueKind("patients have images of both labels", strict=False),
    "own_patient": IssueKind("do not tell their patient: each counts as one", strict=False),
    "system_file": IssueKind("were left by a system, and are left out", strict=False),
}
FIRST_CASES = 3  # of a kind of issue, in messages


def log_issues(issues: Iterable[DataIssue], strict: bool = False) -> None:
    """Log what is wrong, a line for each kind with the first few cases.

    Raises:
        UserError: with `strict`, if any of it is of a kind that counts.
    """
    kinds: dict[str, list[DataIssue]] = {}
    for issue in issues:
        kinds.setdefault(issue.kind, []).append(issue)
    lines = {kind: _describe_issues(kind, cases) for kind, cases in kinds.items()}
    if strict and (counts := [line for kind, line in lines.items() if ISSUE_KINDS[kind].strict]):
        raise UserError(
            f"{' '.join(counts)} Mend or remove them, or leave --strict out to go on without them."
        )
    for kind, line in lines.items():
        if kind != "system_file":
            logger.warning("%s", line)


def _describe_issues(kind: str, cases: Sequence[DataIssue]) -> str:
    first = "; ".join(f"{one.file} ({one.reason})" for one in cases[:FIRST_CASES])
    count = sum(one.count for one in cases)
    more = "; ..." if count > min(len(cases), FIRST_CASES) else ""
    noun = "" if kind in ("both_labels", "closed_folder") else "file(s) "
    return f"{count} {noun}{ISSUE_KINDS[kind].title}: {first}{more}."
