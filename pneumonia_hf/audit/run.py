"""The audit: every check of CHECKS, run over all images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.audit import label_checks, leakage_checks, quality_checks, shortcuts
from pneumonia_hf.audit.dataset import VERDICTS, Finding, Xrays
from pneumonia_hf.data.cache import decode_splits
from pneumonia_hf.data.load import find_both_labels, load_splits
from pneumonia_hf.data.pixel_store import XrayPixels, cache_in
from pneumonia_hf.data.table import XrayData

if TYPE_CHECKING:
    from datasets import Dataset

    from pneumonia_hf.audit.label_errors import FeatureConfig

CHECKS: dict[str, Callable[[Xrays], Finding]] = {
    "balance": label_checks.check_balance,
    "sizes": quality_checks.check_sizes,
    "modes": quality_checks.check_modes,
    "brightness": quality_checks.check_brightness,
    "saturated": quality_checks.check_saturated,
    "blank": quality_checks.check_blank,
    "unreadable": quality_checks.check_unreadable,
    "strays": quality_checks.check_strays,
    "metadata": quality_checks.check_metadata,
    "exact_duplicates": leakage_checks.check_exact_duplicates,
    "near_duplicates": leakage_checks.check_near_duplicates,
    "patient_overlap": leakage_checks.check_patient_overlap,
    "patient_labels": label_checks.check_patient_labels,
    "unknown_patients": leakage_checks.check_unknown_patients,
    "label_suspects": label_checks.check_label_suspects,
    "shortcuts": shortcuts.check_shortcuts,
}
# The checks that say how far a test set is to be believed.
TEST_CHECKS = (
    "balance", "sizes", "modes", "blank", "exact_duplicates", "near_duplicates", "patient_labels",
    "shortcuts",
)  # fmt: skip
SIZE = 224  # pixels a side of the compared images


def run_checks(xrays: Xrays) -> dict[str, Finding]:
    """Return the finding of each check."""
    return {name: check(xrays) for name, check in CHECKS.items()}


def join_splits(
    data: XrayData, images: dict[str, XrayPixels], features: FeatureConfig | None = None
) -> Xrays:
    """Return all splits of a data set as one, for the checks."""
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
    return Xrays(rows, names, split, joined, tuple(data.issues), features)


def audit_sources(
    data_dir: str | Path | Sequence[str],
    features: FeatureConfig | None = None,
    cache_dir: str | Path | None = None,
    strict: bool = False,
) -> tuple[dict[str, Finding], Xrays]:
    """Read one or several sources, and return the finding of each check.

    The arguments are those of DataConfig, and `features` for the check of label suspects, which
    is skipped without. Raises the UserErrors of `load_splits` and `decode_splits`.
    """
    from pneumonia_hf.imaging.preprocess import make_processor

    processor = make_processor(SIZE, (0.5,) * 3, (0.5,) * 3)
    listed = load_splits(data_dir, strict, may_lack=True)
    with cache_in(cache_dir):
        splits, images = decode_splits(listed, processor, strict=strict, may_lack=True)
        xrays = join_splits(splits, images, features)
        return run_checks(xrays), xrays


def audit_images(data: Dataset, quick: bool = False) -> dict[str, Finding]:
    """Return the findings on readable images that a model is tested on, by TEST_CHECKS.

    With `quick`, without the search for near duplicates.
    """
    from pneumonia_hf.imaging.preprocess import make_processor

    processor = make_processor(SIZE, (0.5,) * 3, (0.5,) * 3)
    splits = {"test": data}
    listed = XrayData(splits, find_both_labels(splits))
    xrays = join_splits(*decode_splits(listed, processor, may_lack=True))
    skipped = {"near_duplicates"} if quick else set()
    return {name: CHECKS[name](xrays) for name in TEST_CHECKS if name not in skipped}


def audit_briefly(data: XrayData, images: dict[str, XrayPixels]) -> str:
    """Return the verdicts on the data of a training run, a line for each check.

    The check of label suspects is left out: it takes a network's features, and minutes.
    """
    findings = run_checks(join_splits(data, images))
    del findings["label_suspects"]
    counts = ", ".join(f"{name} {len(split)}" for name, split in data.items())
    lines = [f"Audit of the data ({counts}):"]
    lines += [f"  {one.verdict:5} {name}: {one.text}" for name, one in findings.items()]
    if any(one.verdict != VERDICTS[0] for one in findings.values()):
        lines.append("  audit_data.py shows examples, and also searches for label errors.")
    return "\n".join(lines)
