"""Patients: how file names give them, and how they are counted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# File names of the Kermany set: one patient has up to 30 images.
KERMANY_NAME = re.compile(r"^(person\d+)_(?:bacteria|virus)_\d+|^((?:NORMAL2-)?IM-\d+)-\d+")


def find_patient(file: str, prefix: str) -> str | None:
    """Return the patient that a file's name tells, as the Kermany set writes it, or None."""
    match = KERMANY_NAME.match(Path(file).name)
    if not match:
        return None
    # Other software names X-rays so too, in a folder for each patient.
    inner = "/".join(Path(file).parts[1:-1])
    return f"{prefix}{inner}{'/' if inner else ''}{match[1] or match[2]}"


# The name of a patient that was made from such a file name: `train/person1008`, `a:IM-0115`.
KERMANY_PATIENT = re.compile(r"(^|[/:])(person\d+|(NORMAL2-)?IM-\d+)$")


def named_by_file(patients: Iterable[str]) -> bool:
    """Return whether these patients are groups by the Kermany set's file names.

    There are then at least as many patients: `personN_bacteria` and `personN_virus` are two
    series that are numbered apart, so one group may hold two. And a name carries the class, so
    that no group can have both labels.
    """
    return all(KERMANY_PATIENT.search(one) for one in patients)


def describe_patients(count: int, by_file: bool) -> str:
    """Return a number of patients in words that do not say more than is known."""
    return f"at least {count} patients (groups by file name)" if by_file else f"{count} patients"
