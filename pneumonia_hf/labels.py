"""LABELS: the two classes and how labels are parsed."""

from __future__ import annotations

from collections.abc import Sequence

LABELS = ("NORMAL", "PNEUMONIA")  # a label's place is its class number


def find_label(value: object, names: Sequence[str] | None = None) -> int | None:
    """Return the class number that a label means, or None for one outside the two classes.

    Args:
        value: a class's name in any case, or a number of `names`.
        names: the classes of a numbered label, in order; left out, ours.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        names = LABELS if names is None else names
        value = names[value] if 0 <= value < len(names) else ""
    value = str(value).strip().upper()
    return LABELS.index(value) if value in LABELS else None


def find_plain_label(label: object) -> int | None:
    """Return the class number of a label that may be a number written as text."""
    if isinstance(label, str) and label.strip().isdigit():
        label = int(label)
    return find_label(label)
