"""The audit: every check, run over everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.audit.dataset import VERDICTS, Finding, Xrays
from pneumonia_hf.audit.label_checks import (
    check_balance,
    check_label_suspects,
    check_patient_labels,
)
from pneumonia_hf.audit.leakage_checks import (
    check_exact_duplicates,
    check_near_duplicates,
    check_patient_overlap,
    check_unknown_patients,
)
from pneumonia_hf.audit.quality_checks import (
    check_blank,
    check_brightness,
    check_metadata,
    check_modes,
    check_saturated,
    check_sizes,
    check_strays,
    check_unreadable,
)
from pneumonia_hf.audit.shortcuts import check_shortcuts
from pneumonia_hf.data.cache import decode_splits
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.pixel_store import XrayPixels

if TYPE_CHECKING:
    from pneumonia_hf.audit.label_errors import FeatureConfig
    from pneumonia_hf.data.table import XrayData

CHECKS: dict[str, Callable[[Xrays], Finding]] = {
    "balance": check_balance,
    "sizes": check_sizes,
    "modes": check_modes,
    "brightness": check_brightness,
    "saturated": check_saturated,
    "blank": check_blank,
    "unreadable": check_unreadable,
    "strays": check_strays,
    "metadata": check_metadata,
    "exact_duplicates": check_exact_duplicates,
    "near_duplicates": check_near_duplicates,
    "patient_overlap": check_patient_overlap,
    "patient_labels": check_patient_labels,
    "unknown_patients": check_unknown_patients,
    "label_suspects": check_label_suspects,
    "shortcuts": check_shortcuts,
}
SIZE = 224  # pixels squared at which images are compared


def run_checks(xrays: Xrays) -> dict[str, Finding]:
    """Return what each check finds; label suspects are looked for if there are features."""
    return {name: check(xrays) for name, check in CHECKS.items()}


def gather(
    data: XrayData, images: dict[str, XrayPixels], features: FeatureConfig | None = None
) -> Xrays:
    """Return all parts of a data set as one, for the checks."""
    from datasets import concatenate_datasets

    names = tuple(data)
    several = [images[name] for name in names]
    joined = XrayPixels(
        several[0].store,
        rows=np.concatenate([one.rows for one in several]),
        labels=np.concatenate([one.labels for one in several]),
        hashes=np.concatenate([one.hashes for one in several]),
    )
    split = np.repeat(np.arange(len(names), dtype=np.int8), [len(one) for one in several])
    rows = concatenate_datasets([data[name] for name in names])
    return Xrays(rows, names, split, joined, data.issues, features)


def audit_sources(
    data_dir: str | Path | Sequence[str],
    features: FeatureConfig | None = None,
    cache_dir: str | Path | None = None,
    strict: bool = False,
) -> tuple[dict[str, Finding], Xrays]:
    """Read everything in one or several sources, and return what each check finds in it.

    Args:
        data_dir: as in DataConfig.
        features: what label suspects are looked for with; left out, they are not.
        cache_dir: the folder for decoded images.
        strict: whether what is no readable, labelled X-ray is an error.

    Raises:
        UserError: as `load_splits` and `decode_splits`.
    """
    from pneumonia_hf.imaging.preprocess import make_processor

    processor = make_processor(SIZE, (0.5,) * 3, (0.5,) * 3)
    listed = load_splits(data_dir, strict, may_lack=True)
    splits, images = decode_splits(listed, processor, cache_dir, strict, may_lack=True)
    xrays = gather(splits, images, features)
    return run_checks(xrays), xrays


def audit_briefly(data: XrayData, images: dict[str, XrayPixels]) -> str:
    """Return the verdicts on the data of a training run, a line for each check.

    All but label suspects are looked for, which take a network's features and minutes.
    """
    findings = run_checks(gather(data, images))
    del findings["label_suspects"]
    counts = ", ".join(f"{name} {len(split)}" for name, split in data.items())
    lines = [f"What the audit says of the data ({counts}):"]
    lines += [f"  {one.verdict:5} {name}: {one.text}" for name, one in findings.items()]
    worst = max((one.verdict for one in findings.values()), key=VERDICTS.index)
    if worst != "fine":
        lines.append("  audit_data.py shows the examples, and looks for wrong labels too.")
    return "\n".join(lines)
