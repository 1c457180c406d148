"""Patients: find them in file names, and describe their number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# File names of the Kermany set on Kaggle, in which one patient has up to 30 images.
KERMANY_NAME = re.compile(r"^(person\d+)_(?:bacteria|virus)_\d+|^((?:NORMAL2-)?IM-\d+)-\d+")
# File names of the set under its own DOI: class, number of the patient, number of the image.
NUMBERED_NAME = re.compile(r"^(?:NORMAL|BACTERIA|VIRUS)-(\d+)-\d+")
# Groups by names of the first kind: `train/person1008`, `a:IM-0115`.
KERMANY_PATIENT = re.compile(r"(^|[/:])(person\d+|(NORMAL2-)?IM-\d+)$")

_NO_PATIENT = {"", "na", "nan", "none"}  # what tables write in an empty cell


def is_patient(text: str) -> bool:
    """Return whether the text of a cell names a patient."""
    return text.strip().lower() not in _NO_PATIENT


def find_patient(file: str, prefix: str) -> str | None:
    """Return the patient in a file name of the Kermany set, or None for other names."""
    name = Path(file).name
    if numbered := NUMBERED_NAME.match(name):
        return numbered[1]  # in every split and class
    match = KERMANY_NAME.match(name)
    if not match:
        return None
    # Other software uses such names too, with a folder for each patient.
    inner = "/".join(Path(file).parts[1:-1])
    return f"{prefix}{inner}{'/' if inner else ''}{match[1] or match[2]}"


def named_by_file(patients: Iterable[str]) -> bool:
    """Return whether all patients are groups by file name of the Kermany set on Kaggle.

    The true number of patients may then be larger: `personN_bacteria` and `personN_virus` are
    numbered separately, so a group may hold two patients. And no group can have both labels,
    because the file name contains the class.
    """
    return all(KERMANY_PATIENT.search(one) for one in patients)


def describe_patients(count: int, by_file: bool) -> str:
    """Return a number of patients in words; groups by file name give a lower bound."""
    return f"at least {count} patients (groups by file name)" if by_file else f"{count} patients"
