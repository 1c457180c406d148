"""LABELS: the two classes of images, the third of some models, and how labels are parsed."""

from __future__ import annotations

LABELS = ("NORMAL", "PNEUMONIA")  # in the order of their class numbers
OTHER = "OTHER"  # a model's third class: abnormal without pneumonia, which data count as NORMAL


def find_label(value: object) -> int | None:
    """Return the class number of a label, a name in any case or a number; None for others."""
    if isinstance(value, int):
        is_class = not isinstance(value, bool) and 0 <= value < len(LABELS)
        return value if is_class else None
    name = str(value).strip().upper()
    return LABELS.index(name) if name in LABELS else None


def find_plain_label(label: object) -> int | None:
    """Return the class number of a label that may be a number as text."""
    if isinstance(label, str) and label.strip().isdigit():
        label = int(label)
    return find_label(label)
