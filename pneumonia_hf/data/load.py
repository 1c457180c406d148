"""Load X-rays of one or several sources as train, validation and test splits."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.cli import flag
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.issues import DataIssue, log_issues
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.data.sources import SOURCES, Source, parse_source
from pneumonia_hf.data.splits import split_by_patient
from pneumonia_hf.data.table import ALL, SPLIT_NAMES, XrayData, column, to_dataset
from pneumonia_hf.errors import UserError
from pneumonia_hf.labels import LABELS

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
IMAGE_LISTS = ("test_images", "validation_images", "exclude_images")


@dataclass
class DataConfig:
    """Where the X-rays are and how they are split."""

    data_dir: list[str] = flag(
        MISSING,
        "One or more sources, each [NAME=][KIND:]WHERE: a folder with train/ val/ "
        "test/ or with NORMAL/ and PNEUMONIA/, one_vs_rest:FOLDER (all other classes are "
        "NORMAL too), hub:OWNER/NAME[:CONFIG][@REVISION], medmnist:224, shards:PATH_OR_URL.",
    )
    data_name: str | None = flag(
        None, "Name of the data in the model card; default: the sources' names."
    )
    validation_fraction: float = flag(
        0.15, "Share of the images for validation, in whole patients."
    )
    test_fraction: float = flag(0.15, "Share of the images for testing, in whole patients.")
    hospitals: list[str] | None = flag(
        None,
        "Sources of one hospital, each NAME=SOURCE,SOURCE,...; by default each source "
        "is a hospital of its own. What must hold at an unseen hospital leaves all of it out.",
    )
    test_images: list[str] | None = flag(
        None,
        "Files with hashes of images, 16 digits of their SHA-256 a line: they are the "
        "test split of their source, and no other image of their patients is trained on.",
    )
    validation_images: list[str] | None = flag(
        None, "Files with hashes of images, as for --test_images, for validation."
    )
    exclude_images: list[str] | None = flag(
        None, "Files with hashes of images, as for --test_images, that no split gets."
    )
    smallest_validation: int = flag(
        100, "A val/ split with fewer images joins train/, and a new one is made."
    )
    split_seed: int = flag(13, "Seed of the patient-grouped split.")
    strict: bool = flag(False, "Stop if any file or row is not a readable, labelled X-ray.")
    cache_dir: str | None = flag(
        None,
        "Folder for decoded images and hashes; default: $PNEUMONIA_HF_CACHE or "
        "~/.cache/pneumonia-hf.",
    )

    def __post_init__(self) -> None:
        for name in ("data_dir", *IMAGE_LISTS):
            if isinstance(value := getattr(self, name), str | Path):
                setattr(self, name, [str(value)])
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) <= 0.5:
                raise UserError(f"{name} is {getattr(self, name)}; give a share in 0..0.5.")
        if self.validation_fraction + self.test_fraction > 0.8:
            raise UserError(
                f"validation_fraction and test_fraction add up to "
                f"{self.validation_fraction + self.test_fraction}; leave 0.2 or more to train on."
            )
        if not 0 <= self.split_seed < 2**32:
            raise UserError(f"split_seed is {self.split_seed}; give 0 or more.")


def load_xrays(config: DataConfig) -> XrayData:
    """Return the splits `train`, `validation` and `test`.

    Splits that a source lacks are split off its train split, grouped by patient and stratified
    by class. The columns are `image`, a path or address (`Image(decode=False)`; `open_images`
    reads it), `label`, 0 for NORMAL and 1 for PNEUMONIA, `patient`, a unique name, `file`, the
    image's name, `source` and `hospital`, the source's name and that of its hospital, and the
    further columns of metadata.csv as text. Data issues are logged and are in the result's
    `issues`.

    Raises:
        UserError: a source is missing, has only one class, or is too small to be split; an unknown
            source in `hospitals`; with `config.strict`, any file or row is not a readable,
            labelled X-ray.
    """
    hospitals = read_hospitals(config.hospitals, config.data_dir)
    listed = zip(_list_sources(config.data_dir, hospitals=hospitals), config.data_dir, strict=True)
    with cache_in(config.cache_dir):
        splits = _join([_add_splits(own, config, text) for own, text in listed], SPLITS)
    _check_classes(splits, config.data_dir)
    _warn_of_shared_patients(splits)
    log_issues(splits.issues, config.strict)
    return splits


def load_splits(
    data_dir: str | Path | Sequence[str],
    strict: bool = False,
    may_lack: bool = False,
    hospitals: Sequence[str] | None = None,
    others: Sequence[str] = (),
) -> XrayData:
    """Return the sources' own splits: `train`, `validation`, `test`, or `all` without splits.

    Rows are as `load_xrays` returns them. With `may_lack`, a split may lack a class. For
    `hospitals` see DataConfig. `others` are the folders that `list_others` takes: their files are
    not said to be left out.

    Raises:
        UserError: a source is missing, has neither splits nor classes, or lacks a class.
    """
    sources = [str(data_dir)] if isinstance(data_dir, str | Path) else list(data_dir)
    listed = _list_sources(sources, may_lack, read_hospitals(hospitals, sources))
    splits = _join(listed, (ALL, *SPLITS))
    if not may_lack:
        _check_classes(splits, sources)
    issues = [
        one
        for one in splits.issues
        if one.kind not in ("unknown_label", "no_place")
        or not any(PurePosixPath(one.file).is_relative_to(folder) for folder in others)
    ]
    log_issues(issues, strict)
    return splits


def read_hospitals(hospitals: Sequence[str] | None, data_dir: Sequence[str]) -> dict[str, str]:
    """Return the hospital of each source that `hospitals` names."""
    found = {}
    known = {parse_source(text).name for text in data_dir}
    for text in hospitals or []:
        hospital, equals, sources = text.partition("=")
        for source in sources.split(","):
            if not equals or source not in known:
                raise UserError(
                    f"--hospitals {text} must be NAME=SOURCE,SOURCE with the sources "
                    f"{', '.join(sorted(known))}."
                )
            found[source] = hospital
    return found


def _list_sources(
    texts: Sequence[str],
    may_lack: bool = False,
    hospitals: Mapping[str, str] = MappingProxyType({}),
) -> list[XrayData]:
    """Return the own splits of every source, with unique patient names."""
    sources = [parse_source(text) for text in texts]
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"Two sources are called {twice!r}; name them: --data_dir A=... B=...")
    several = len(sources) > 1
    listed = []
    for source in sources:
        found = SOURCES[source.kind].list(source.where)
        splits = {name: _add_source(d, source, hospitals, several) for name, d in found.items()}
        for name, data in splits.items():
            _check_one_source(source, name, data, may_lack or several, found.issues)
        issues = [*found.issues, *find_both_labels(found)]
        if several:
            issues = [
                DataIssue(one.kind, f"{source.name}:{one.file}", one.reason, one.count)
                for one in issues
            ]
        listed.append(XrayData(splits, issues))
    return listed


def _add_source(
    data: Dataset, source: Source, hospitals: Mapping[str, str], several: bool
) -> Dataset:
    """Add `source` and `hospital`; among several sources, prefix patients and files."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Value

    table, features = data.data.table, data.features.copy()
    if several:
        for name in ("patient", "file"):
            prefixed = pc.binary_join_element_wise(source.name, table[name], ":")
            table = table.set_column(table.column_names.index(name), name, prefixed)
    hospital = hospitals.get(source.name, source.name)
    for name, value in (("source", source.name), ("hospital", hospital)):
        cells = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(data), np.int8)), [value])
        table = table.append_column(name, cells.cast(pa.string()))
        features[name] = Value("string")
    return to_dataset(table.replace_schema_metadata(None), features)


def find_both_labels(splits: dict[str, Dataset]) -> list[DataIssue]:
    """Return an issue for each patient with images of both labels, over all splits."""
    import pyarrow as pa

    columns = {
        name: pa.concat_arrays([column(data, name) for data in splits.values()])
        for name in ("patient", "label")
    }
    groups = pa.table(columns).group_by("patient", use_threads=False)
    counted = groups.aggregate([("label", "count"), ("label", "sum")])
    return [
        DataIssue("both_labels", patient, f"{count - ill} {LABELS[0]}, {ill} {LABELS[1]}")
        for patient, count, ill in zip(*counted.to_pydict().values(), strict=True)
        if 0 < ill < count
    ]


def _check_one_source(
    source: Source, split: str, data: Dataset, may_lack: bool, issues: Sequence[DataIssue]
) -> None:
    """Raise an error if a split lacks a class, or log a warning where it may."""
    counts = np.bincount(column(data, "label").to_numpy(), minlength=len(LABELS))
    for label in np.flatnonzero(counts == 0):
        name = LABELS[label]
        if may_lack and counts.any():
            logger.warning(
                "The %s split of %s has no %s: in that split, the source determines the class.",
                split,
                source.name,
                name,
            )
            continue
        if not source.is_folder:
            raise UserError(f"The {split} split of {source.where} has no {name} images.")
        root = Path(source.where).expanduser()
        inner = (f for f in sorted(root.iterdir()) if SPLIT_NAMES.get(f.name.lower()) == split)
        folder = next(inner, root)
        others = {one.name: one for one in sorted(folder.iterdir()) if one.is_dir()}
        found = next((one for one in others if one.upper() == name), None)
        if found:
            raise UserError(f"{others[found]} holds no images; put the {name} X-rays there.")
        unknown = [one for one in issues if one.kind == "unknown_label"]
        if inside := [one for one in unknown if (root / one.file).is_relative_to(folder)]:
            raise UserError(
                f"{folder} has no {name} images, but {len(inside)} that are neither NORMAL nor "
                f"PNEUMONIA: {inside[0].file}, {inside[0].reason}; rename that label."
            )
        has = f" (it has {', '.join([*others][:5])})" if others else ""
        raise UserError(
            f"{folder} has no {name} folder, and both classes are needed{has}; add {folder / name}."
        )


def _add_splits(splits: XrayData, config: DataConfig, source: str) -> XrayData:
    """Split what a source lacks off its train split, by patient."""
    from datasets import concatenate_datasets

    own = dict(splits)
    if config.exclude_images:
        for name, data in own.items():
            is_excluded = find_listed(data, config.exclude_images)
            own[name] = data.select(np.flatnonzero(~is_excluded))
    count_kept = sum(map(len, own.values()))
    train = own.pop(ALL, None) or own.pop("train", None)
    if train is None:
        raise UserError(
            f"{source} has {' and '.join(own)} but no train split; "
            f"add train/NORMAL and train/PNEUMONIA."
        )
    validation = own.get("validation")
    if validation is not None and len(validation) < config.smallest_validation:
        logger.warning(
            "The val split has %d images, too few to choose a model or a threshold: it joins "
            "train, from which a patient-grouped validation split is taken "
            "(--smallest_validation 0 keeps it as it is).",
            len(validation),
        )
        train = concatenate_datasets([train, own.pop("validation")])
    for name, lists in (("test", config.test_images), ("validation", config.validation_images)):
        if not lists:
            continue
        if name not in own:
            train, listed = _split_listed(train, lists)
            own |= {name: listed} if len(listed) else {}
        elif count := int(find_listed(train, lists).sum()):
            raise UserError(
                f"--{name}_images lists {count} training images of {source}, which has a {name} "
                f"split of its own; move them into it, or leave one of the two out."
            )
    count = len(train)  # both fractions are of all these images
    for name in ("test", "validation"):
        if name not in own:
            fraction, flag_name = getattr(config, f"{name}_fraction"), f"--{name}_fraction"
            train, own[name] = split_by_patient(
                train, fraction, config.split_seed, count, flag_name
            )
    own["train"] = train
    is_listed = config.test_images or config.validation_images
    if not is_listed and sum(map(len, own.values())) != count_kept:
        raise AssertionError("images were lost when the source was split")
    return XrayData(own, splits.issues)


def _split_listed(train: Dataset, lists: Sequence[str]) -> tuple[Dataset, Dataset]:
    """Return the images of patients without a listed image, and the listed images."""
    is_listed = find_listed(train, lists)
    patients = np.asarray(train["patient"][:])
    is_tested = np.isin(patients, patients[is_listed])
    return train.select(np.flatnonzero(~is_tested)), train.select(np.flatnonzero(is_listed))


def find_listed(data: Dataset, paths: Sequence[str]) -> np.ndarray:
    """Return whether each image is in a list of images: bool [N]."""
    return np.isin(to_hex(hash_images(data)), list(read_image_lists(paths)))


def read_image_lists(paths: Sequence[str | Path]) -> set[str]:
    """Return the hashes in lists of images: a line each, besides comments after #.

    Raises:
        UserError: no such file, or a line that is no hash.
    """
    listed = set()
    for path in paths:
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The list of images {path} cannot be read; check the path.") from error
        found = {line.partition("#")[0].strip() for line in lines} - {""}
        wrong = next((one for one in found if not re.fullmatch("[0-9a-f]{16}", one)), None)
        if wrong or not found:
            raise UserError(
                f"{path} must hold 16 hex digits of an image's SHA-256 a line, not {wrong!r}."
            )
        listed |= found
    return listed


def _join(several: Sequence[XrayData], names: Sequence[str]) -> XrayData:
    """Concatenate the splits of several sources."""
    from datasets import concatenate_datasets

    joined = {}
    for name in names:
        tables = [splits[name] for splits in several if name in splits]
        if tables:
            joined[name] = tables[0] if len(tables) == 1 else concatenate_datasets(tables)
    return XrayData(joined, [one for splits in several for one in splits.issues])


def _check_classes(splits: XrayData, sources: Sequence[str]) -> None:
    for name, data in splits.items():
        counts = np.bincount(column(data, "label").to_numpy(), minlength=len(LABELS))
        if len(sources) > 1 and not counts.all():
            lacking = LABELS[int(np.argmin(counts))]
            raise UserError(f"No source has {lacking} images for the {name} split; add some.")


def _warn_of_shared_patients(splits: XrayData) -> None:
    patients = {name: set(column(split, "patient").to_pylist()) for name, split in splits.items()}
    for one, other in combinations(patients, 2):
        if shared := patients[one] & patients[other]:
            logger.warning(
                "%d patients are in %s and in %s (%s, ...): results on %s are optimistically "
                "biased.",
                len(shared), one, other, min(shared), other,
            )  # fmt: skip
