"""X-rays of one or several sources -> train, validation and test splits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.issues import DataIssue, log_issues
from pneumonia_hf.data.sources import Source, list_source, parse_source
from pneumonia_hf.data.splits import SPLIT_TOLERANCE, split_by_patient
from pneumonia_hf.data.table import ALL, SPLIT_NAMES, XrayData, column, to_dataset
from pneumonia_hf.errors import UserError
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")


@dataclass
class DataConfig:
    """Where the X-rays are and how they are parted."""

    data_dir: list[str] = field(
        metadata={
            "help": "One or more sources, each [NAME=][KIND:]WHERE: a folder with train/ val/ "
            "test/ or with NORMAL/ and PNEUMONIA/, hub:OWNER/NAME, medmnist:224, "
            "shards:PATH_OR_URL."
        },
    )
    data_name: str | None = field(
        default=None,
        metadata={"help": "What the model card calls the data; left out, the sources' names."},
    )
    validation_fraction: float = field(
        default=0.15,
        metadata={"help": "Share of the images cut off for validation, whole patients."},
    )
    test_fraction: float = field(
        default=0.15, metadata={"help": "Share of the images cut off for testing, whole patients."}
    )
    smallest_validation: int = field(
        default=100,
        metadata={"help": "A val/ part with fewer images joins train/, and another is cut."},
    )
    split_seed: int = field(default=13, metadata={"help": "Seed of the patient-grouped cut."})
    strict: bool = field(
        default=False,
        metadata={"help": "Stop if anything in the data is not a readable, labelled X-ray."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for decoded images; left out, $PNEUMONIA_HF_CACHE or "
            "~/.cache/pneumonia-hf."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.data_dir, str | Path):
            self.data_dir = [str(self.data_dir)]
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) <= 0.5:
                raise UserError(f"{name} is {getattr(self, name)}; give a share in 0..0.5.")
        if self.validation_fraction + self.test_fraction > 0.8:
            raise UserError(
                f"validation_fraction and test_fraction make "
                f"{self.validation_fraction + self.test_fraction}; leave 0.2 or more to train on."
            )
        if not 0 <= self.split_seed < 2**32:
            raise UserError(f"split_seed is {self.split_seed}; give 0 or more.")


def load_xrays(config: DataConfig) -> XrayData:
    """Return the parts `train`, `validation` and `test`, each with image, label and patient.

    Parts that a source does not have are cut from its train split, grouped by patient and
    balanced by class. `image` holds a path or address (`Image(decode=False)`; `open_images`
    fetches it), `label` is 0 for NORMAL and 1 for PNEUMONIA, `patient` is a name that no two
    patients share, `file` what people call the image, `source` where it is from; further
    columns of a metadata.csv follow as text. All that was not as it should be is logged, and
    is in the `issues` of the result.

    Raises:
        UserError: a source is missing, holds one class only, or is too small to be parted; with
            `config.strict`, anything that is not a readable, labelled X-ray.
    """
    listed = _list_sources(config.data_dir)
    cut = [_cut(splits, config, text) for splits, text in zip(listed, config.data_dir, strict=True)]
    splits = _join(cut, SPLITS)
    _check_classes(splits, config.data_dir)
    _warn_of_shared_patients(splits)
    log_issues(splits.issues, config.strict)
    return splits


def load_splits(
    data_dir: str | Path | Sequence[str], strict: bool = False, may_lack: bool = False
) -> XrayData:
    """Return the parts as the sources have them: `train`, `validation`, `test`, or `all`.

    `all` stands for a source that is not parted. Rows are as `load_xrays` returns them. With
    `may_lack`, a part may hold one class only.

    Raises:
        UserError: a source is missing, has neither parts nor classes, or lacks a class.
    """
    sources = [str(data_dir)] if isinstance(data_dir, str | Path) else list(data_dir)
    listed = _list_sources(sources, may_lack)
    splits = _join(listed, (ALL, *SPLITS))
    if not may_lack:
        _check_classes(splits, sources)
    log_issues(splits.issues, strict)
    return splits


def _list_sources(texts: Sequence[str], may_lack: bool = False) -> list[XrayData]:
    """Return the parts of every source as it has them, with patients that no two share."""
    sources = [parse_source(text) for text in texts]
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"Two sources are called {twice!r}; name them: --data_dir A=... B=...")
    listed = []
    for source in sources:
        listing = list_source(source)
        several = len(sources) > 1
        splits = {name: _mark(data, source, several) for name, data in listing.splits.items()}
        for name, data in splits.items():
            _check_one_source(source, name, data, may_lack or several)
        issues = [*listing.issues, *_find_both_labels(listing.splits)]
        if several:
            issues = [
                DataIssue(one.kind, f"{source.name}:{one.file}", one.reason, one.count)
                for one in issues
            ]
        listed.append(XrayData(splits, tuple(issues)))
    return listed


def _mark(data: Dataset, source: Source, several: bool) -> Dataset:
    """Say in every row where it is from; among several sources, in patients and files too."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Value

    table, features = data.data.table, data.features.copy()
    if several:
        for name in ("patient", "file"):
            summary = pc.binary_join_element_wise(source.name, table[name], ":")
            table = table.set_column(table.column_names.index(name), name, summary)
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(data), np.int8)), [source.name])
    table = table.append_column("source", names.cast(pa.string()))
    features["source"] = Value("string")
    return to_dataset(table.replace_schema_metadata(None), features)


def _find_both_labels(splits: dict[str, Dataset]) -> list[DataIssue]:
    import pyarrow as pa

    patients = pa.concat_arrays([column(data, "patient") for data in splits.values()])
    labels = np.concatenate([column(data, "label").to_numpy() for data in splits.values()])
    coded = patients.dictionary_encode()
    codes = coded.indices.to_numpy()
    seen = np.zeros((len(coded.dictionary), len(LABELS)), np.int64)
    np.add.at(seen, (codes, labels), 1)
    return [
        DataIssue(
            "both_labels",
            coded.dictionary[int(code)].as_py(),
            f"{seen[code, 0]} {LABELS[0]}, {seen[code, 1]} {LABELS[1]}",
        )
        for code in np.flatnonzero(seen.all(axis=1))
    ]


def _check_one_source(source: Source, split: str, data: Dataset, may_lack: bool) -> None:
    """Raise, or warn among several sources, if a part lacks a class."""
    counts = np.bincount(column(data, "label").to_numpy(), minlength=len(LABELS))
    for label in np.flatnonzero(counts == 0):
        name = LABELS[label]
        if may_lack and counts.any():
            logger.warning(
                "The %s part of %s has no %s: there, the source tells the class.",
                split,
                source.name,
                name,
            )
            continue
        if source.kind != "folder":
            raise UserError(f"The {split} part of {source.where} has no {name} images.")
        folder = _find_split_folder(Path(source.where).expanduser(), split)
        found = [one for one in folder.iterdir() if one.is_dir() and one.name.upper() == name]
        if found:
            raise UserError(f"{found[0]} holds no images; put the {name} X-rays there.")
        others = sorted(one.name for one in folder.iterdir() if one.is_dir())
        has = f" (it has {', '.join(others[:5])})" if others else ""
        raise UserError(
            f"{folder} has no {name} folder, and both classes are needed{has}; add {folder / name}."
        )


def _find_split_folder(root: Path, split: str) -> Path:
    inner = (one for one in sorted(root.iterdir()) if SPLIT_NAMES.get(one.name.lower()) == split)
    return next(inner, root)


def _cut(splits: XrayData, config: DataConfig, source: str) -> XrayData:
    """Cut what a source does not have from its train split, by patient."""
    from datasets import concatenate_datasets

    own = dict(splits)
    train = own.pop(ALL, None) or own.pop("train", None)
    if train is None:
        raise UserError(
            f"{source} has {' and '.join(own)} but no train split; "
            f"add train/NORMAL and train/PNEUMONIA."
        )
    validation = own.get("validation")
    if validation is not None and len(validation) < config.smallest_validation:
        logger.warning(
            "The val split has %d images, too few to choose a model or a threshold on: "
            "it joins train, and a patient-grouped validation split is cut from both "
            "(--smallest_validation 0 keeps it as it is).",
            len(validation),
        )
        train = concatenate_datasets([train, own.pop("validation")])
    # Both shares are of all images: the second cut is from what the first has left.
    count = len(train)
    if "test" not in own:
        train, own["test"] = split_by_patient(train, config.test_fraction, config.split_seed)
    if "validation" not in own:
        of_rest = count / len(train)
        train, own["validation"] = split_by_patient(
            train,
            config.validation_fraction * of_rest,
            config.split_seed,
            SPLIT_TOLERANCE * of_rest,
        )
    own["train"] = train
    if sum(len(split) for split in own.values()) != sum(len(split) for split in splits.values()):
        raise AssertionError("images were lost between the source and its parts")
    return XrayData(own, splits.issues)


def _join(several: Sequence[XrayData], names: Sequence[str]) -> XrayData:
    """Return the parts of several sources as one."""
    from datasets import concatenate_datasets

    joined = {}
    for name in names:
        tables = [splits[name] for splits in several if name in splits]
        if tables:
            joined[name] = tables[0] if len(tables) == 1 else concatenate_datasets(tables)
    return XrayData(joined, tuple(one for splits in several for one in splits.issues))


def _check_classes(splits: XrayData, sources: Sequence[str]) -> None:
    for name, data in splits.items():
        counts = np.bincount(column(data, "label").to_numpy(), minlength=len(LABELS))
        if len(sources) > 1 and not counts.all():
            lacking = LABELS[int(np.argmin(counts))]
            raise UserError(f"No source has {lacking} images for the {name} part; add some.")


def _warn_of_shared_patients(splits: XrayData) -> None:
    import pyarrow.compute as pc

    patients = {name: pc.unique(column(split, "patient")) for name, split in splits.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = patients[one].filter(pc.is_in(patients[one], patients[other]))
        if len(shared):
            logger.warning(
                "%d patients are both in %s and in %s (%s, ...): numbers measured there flatter.",
                len(shared),
                one,
                other,
                min(shared.to_pylist()),
            )
