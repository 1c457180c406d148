"""Read ages as tables and DICOM headers write them."""

from __future__ import annotations

import re

# DICOM's age string (PS3.5 6.2): 058Y, 006M, 003W or 010D.
AGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([YMWD])\s*", re.IGNORECASE)
PER_YEAR = {"Y": 1, "M": 12, "W": 365.25 / 7, "D": 365.25}


def to_number(cell: object) -> float:
    """Return a number, or an age with its unit in years.

    Raises:
        ValueError: it is neither.
    """
    text = str(cell)
    age = AGE.fullmatch(text)
    return float(age[1]) / PER_YEAR[age[2].upper()] if age else float(text)
