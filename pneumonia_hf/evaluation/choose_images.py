"""Which images of a data set are scored, and which of them the model has seen."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.data.file_hashes import hash_content, hash_images, to_hex
from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.load import load_splits, read_image_lists
from pneumonia_hf.data.table import ALL
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.run_manifest import read_manifest

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

USED = ("train", "validation", "unlabelled")  # splits that a model was trained or chosen on
SPLIT_OF_NAME = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def select_listed(
    data: Dataset, others: Sequence[OtherImage], path: str | Path
) -> tuple[Dataset, list[OtherImage]]:
    """Return the images, and those of other classes, whose hashes are in a file.

    Raises:
        UserError: the list cannot be read, or names none of the images.
    """
    listed = read_image_lists([path])
    rows = [row for row, one in enumerate(to_hex(hash_images(data))) if one in listed]
    if not rows:
        raise UserError(f"None of the images is in {path}; check --images and --data_dir.")
    kept = [one for one in others if to_hex([hash_content(one.path.read_bytes())])[0] in listed]
    return data.select(rows), kept


def choose_split(
    data_dir: str | Path | Sequence[str],
    split: str | None,
    predictor: Predictor,
    strict: bool = False,
    others: Sequence[str] = (),
) -> tuple[str, Dataset]:
    """Return the name and the rows of the split to score.

    With `split`, the folder of that name; if there is none, the images of the model's own split
    of that name (for an ensemble: common to all members), found by their bytes. Without `split`,
    the test folder, or all of a folder without splits. For `others` see `load_splits`.

    Raises:
        UserError: there is no such split.
    """
    from datasets import concatenate_datasets

    splits = load_splits(data_dir, strict, others=others)
    where = data_dir if isinstance(data_dir, str | Path) else ", ".join(data_dir)
    if split is None:
        if ALL in splits and len(splits) > 1:
            raise UserError(
                f"Some sources of {where} have splits and some do not; evaluate them separately."
            )
        name = "test" if "test" in splits else "all"
        if name not in splits:
            choices = " or ".join(sorted(splits))
            raise UserError(f"{where} has no test folder; choose a split: --split {choices}.")
        return name, splits[name]
    if split not in SPLIT_OF_NAME:
        raise UserError(f"Unknown split {split!r}; choose from {sorted(set(SPLIT_OF_NAME))}.")
    name = SPLIT_OF_NAME[split]
    if name in splits:
        return name, splits[name]
    manifests = [read_manifest(member.path) for member in predictor.networks]
    own = set.intersection(*(set(one.hashes.get(name, ())) for one in manifests))
    if not own:
        raise UserError(
            f"{where} has no {split} folder (it has {', '.join(sorted(splits))}), and the model "
            f"does not record its own {split} split; leave --split out."
        )
    data = concatenate_datasets(list(splits.values()))
    rows = [row for row, digest in enumerate(to_hex(hash_images(data))) if digest in own]
    if not rows:
        raise UserError(
            f"{where} has no {split} folder and none of the {len(own)} images of the model's "
            f"own {split} split; leave --split out."
        )
    return name, data.select(rows)


def own_hashes(predictor: Predictor, splits: Collection[str]) -> set[str]:
    """Return the hashes of all images in some splits of the model's or a member's training run."""
    manifests = [read_manifest(member.path) for member in predictor.networks]
    return set().union(*(one.hashes.get(split, ()) for one in manifests for split in splits))


def leave_out_used(others: Sequence[OtherImage], predictor: Predictor) -> list[OtherImage]:
    """Return the images of neither class on which the model was neither trained nor chosen.

    How many of each folder are left out is logged.
    """
    used = own_hashes(predictor, USED)
    kept = [one for one in others if to_hex([hash_content(one.path.read_bytes())])[0] not in used]
    count, left = (Counter(one.folder for one in of) for of in (others, kept))
    for folder, images in (count - left).items():
        logger.warning(
            f"{images} of {count[folder]} images of {folder} left out: the model was trained or "
            f"chosen on them."
        )
    return kept


def count_seen(predictor: Predictor, dataset: Dataset) -> dict[str, int]:
    """Return how many images are in each split of the model's (or a member's) training run."""
    splits = {"train": ("train", "unlabelled"), "validation": ("validation",), "test": ("test",)}
    known = {name: own_hashes(predictor, of) for name, of in splits.items()}
    hashes = to_hex(hash_images(dataset)) if any(known.values()) else []
    return {name: sum(one in of_split for one in hashes) for name, of_split in known.items()}
