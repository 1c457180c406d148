"""Data issues: what is wrong with a file or row, and how it is logged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import logging
from dataclasses import dataclass

from pneumonia_hf.errors import UserError


@dataclass(frozen=True)
class Trouble:
    """Something in the data that is not as it should be."""

    kind: str  # a key of TROUBLES
    file: str  # the picture, file or patient that it is about
    reason: str
    count: int = 1  # of files, where `file` is only the first of them


@dataclass(frozen=True)
class TroubleKind:
    """What one kind of trouble is called, and whether --strict makes an error of it."""

    title: str
    strict: bool = True


TROUBLES = {
    "unreadable": TroubleKind("cannot be read as X-rays, and are left out"),
    "not_a_picture": TroubleKind("are no pictures by their names, and are left out"),
    "odd_name": TroubleKind("have names that are no text (UTF-8), and are left out"),
    "closed_folder": TroubleKind("are folders that cannot be opened, and are left out"),
    "unknown_label": TroubleKind("are neither NORMAL nor PNEUMONIA, and are left out"),
    "no_place": TroubleKind("lie where no part and no class is, and are left out"),
    "metadata_missing_file": TroubleKind("are named by metadata.csv, but are not there"),
    "metadata_left_out": TroubleKind("are left out of metadata.csv"),
    "metadata_other_label": TroubleKind("have another label in metadata.csv than by their folder"),
    "both_labels": TroubleKind("patients have pictures of both labels", strict=False),
    "own_patient": TroubleKind("do not tell their patient: each counts as one", strict=False),
    "system_file": TroubleKind("were left by a system, and are left out", strict=False),
}
FIRST_CASES = 3  # of a kind of trouble, in messages


def tell_troubles(troubles: Iterable[Trouble], strict: bool = False) -> None:
    """Log what is wrong, a line for each kind with the first few cases.

    Raises:
        UserError: with `strict`, if any of it is of a kind that counts.
    """
    kinds: dict[str, list[Trouble]] = {}
    for trouble in troubles:
        kinds.setdefault(trouble.kind, []).append(trouble)
    lines = {kind: _tell_kind(kind, cases) for kind, cases in kinds.items()}
    if strict and (counts := [line for kind, line in lines.items() if TROUBLES[kind].strict]):
        raise UserError(
            f"{' '.join(counts)} Mend or remove them, or leave --strict out to go on without them."
        )
    for kind, line in lines.items():
        if kind != "system_file":
            logger.warning("%s", line)


def _tell_kind(kind: str, cases: Sequence[Trouble]) -> str:
    first = "; ".join(f"{one.file} ({one.reason})" for one in cases[:FIRST_CASES])
    count = sum(one.count for one in cases)
    more = "; ..." if count > min(len(cases), FIRST_CASES) else ""
    noun = "" if kind in ("both_labels", "closed_folder") else "file(s) "
    return f"{count} {noun}{TROUBLES[kind].title}: {first}{more}."
