"""X-rays of one or several sources -> parts, cut by patient, of image, label and patient."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.rows import (
    ALL,
    LABELS,
    PART_NAMES,
    TROUBLES,
    Trouble,
    column,
    take,
    to_dataset,
)
from pneumonia_hf.sources import Source, list_source, parse_source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

PARTS = ("train", "validation", "test")
FIRST_CASES = 3  # of a kind of trouble, in messages
SPLIT_TOLERANCE = 0.01  # between the share of the images that is asked for and that cut off
SPLIT_DRAWS = 200  # random orders of the patients that are tried


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
        metadata={"help": "A val/ part with fewer pictures joins train/, and another is cut."},
    )
    split_seed: int = field(default=13, metadata={"help": "Seed of the patient-grouped cut."})
    strict: bool = field(
        default=False,
        metadata={"help": "Stop if anything in the data is not a readable, labelled X-ray."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for decoded pictures; left out, $PNEUMONIA_HF_CACHE or "
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


def load_xrays(config: DataConfig) -> DatasetDict:
    """Return the parts `train`, `validation` and `test`, each with image, label and patient.

    Parts that a source does not have are cut from its train part, grouped by patient and
    balanced by class. `image` holds a path or address (`Image(decode=False)`; `open_pictures`
    fetches it), `label` is 0 for NORMAL and 1 for PNEUMONIA, `patient` is a name that no two
    patients share, `file` what people call the picture, `source` where it is from; further
    columns of a metadata.csv follow as text. All that was not as it should be is logged, and
    `troubles_of` the parts returns it.

    Raises:
        UserError: a source is missing, holds one class only, or is too small to be parted; with
            `config.strict`, anything that is not a readable, labelled X-ray.
    """
    listed = _list_sources(config.data_dir)
    cut = [_cut(parts, config, text) for parts, text in zip(listed, config.data_dir, strict=True)]
    parts = _join(cut, PARTS)
    _check_classes(parts, config.data_dir)
    _warn_of_shared_patients(parts)
    tell_troubles(troubles_of(parts), config.strict)
    return parts


def load_parts(
    data_dir: str | Path | Sequence[str], strict: bool = False, may_lack: bool = False
) -> DatasetDict:
    """Return the parts as the sources have them: `train`, `validation`, `test`, or `all`.

    `all` stands for a source that is not parted. Rows are as `load_xrays` returns them. With
    `may_lack`, a part may hold one class only.

    Raises:
        UserError: a source is missing, has neither parts nor classes, or lacks a class.
    """
    sources = [str(data_dir)] if isinstance(data_dir, str | Path) else list(data_dir)
    listed = _list_sources(sources, may_lack)
    parts = _join(listed, (ALL, *PARTS))
    if not may_lack:
        _check_classes(parts, sources)
    tell_troubles(troubles_of(parts), strict)
    return parts


def troubles_of(parts: DatasetDict) -> tuple[Trouble, ...]:
    """Return what was not as it should be in the sources of these parts."""
    return getattr(parts, "troubles", ())


def tell_troubles(troubles: Iterable[Trouble], strict: bool = False) -> None:
    """Log what is wrong, a line for each kind with the first few cases.

    Raises:
        UserError: with `strict`, if any of it is of a kind that counts.
    """
    kinds: dict[str, list[Trouble]] = {}
    for trouble in troubles:
        kinds.setdefault(trouble.kind, []).append(trouble)
    lines = {kind: _tell_kind(kind, cases) for kind, cases in kinds.items()}
    if strict and (counts := [line for kind, line in lines.items() if TROUBLES[kind].strict]):
        raise UserError(
            f"{' '.join(counts)} Mend or remove them, or leave --strict out to go on without them."
        )
    for kind, line in lines.items():
        if kind != "system_file":
            logger.warning("%s", line)


def _tell_kind(kind: str, cases: Sequence[Trouble]) -> str:
    first = "; ".join(f"{one.file} ({one.reason})" for one in cases[:FIRST_CASES])
    count = sum(one.count for one in cases)
    more = "; ..." if count > min(len(cases), FIRST_CASES) else ""
    noun = "" if kind in ("both_labels", "closed_folder") else "file(s) "
    return f"{count} {noun}{TROUBLES[kind].title}: {first}{more}."


def split_by_patient(
    data: Dataset, fraction: float, seed: int, tolerance: float = SPLIT_TOLERANCE
) -> tuple[Dataset, Dataset]:
    """Return `data` in two splits, the second with `fraction` of the images, no patient in both.

    Patients are taken in random order until they have their share of the images: those with
    normals only, with pneumonias only and with both apart, so that classes keep their shares.

    Args:
        data: rows as `load_parts` returns them.
        fraction: of the images, above 0 and below 1.
        seed: of the order.
        tolerance: how far the share may be off.

    Raises:
        UserError: the share cannot be met within the tolerance, or a split would lack a class.
    """
    labels, patients = column(data, "label").to_numpy(), _number_patients(data)
    images = np.zeros((patients.max(initial=-1) + 1, len(LABELS)), np.int64)  # of each patient
    np.add.at(images, (patients, labels), 1)
    generator = np.random.default_rng(seed)
    # Whole patients rarely add up at once where they are few, or one has many images.
    draws = (_draw_patients(images, fraction, generator) for _ in range(SPLIT_DRAWS))
    best, best_error = None, np.inf
    for drawn in draws:
        of_both = images[drawn].sum(axis=0), images[~drawn].sum(axis=0)
        if any(np.any((of == 0) & (images.sum(axis=0) > 0)) for of in of_both):
            continue
        error = abs(of_both[0].sum() / len(labels) - fraction)
        if error < best_error:
            best, best_error = drawn, error
        if error <= tolerance / 10:
            break
    if best is None:
        counts = ", ".join(
            f"{np.sum(images[:, label] > 0)} with {name}" for label, name in enumerate(LABELS)
        )
        raise UserError(
            f"Too few patients ({counts}) to cut off {fraction:.1%} of the images with both "
            f"classes; give more images, or train/, val/ and test/ folders."
        )
    cut = best[patients]
    if best_error > tolerance + 1e-9:  # 0.16 - 0.15 is a little more than 0.01
        raise UserError(
            f"Whole patients cannot make up {fraction:.1%} of the {len(labels)} images; the "
            f"nearest share found is {cut.mean():.1%}. Ask for that with --validation_fraction "
            f"or --test_fraction, or give more patients."
        )
    return take(data, np.flatnonzero(~cut)), take(data, np.flatnonzero(cut))


def _draw_patients(
    images: np.ndarray, fraction: float, generator: np.random.Generator
) -> np.ndarray:
    """Return which patients make up `fraction` of the images in one random order: bool [P]."""
    drawn = np.zeros(len(images), bool)
    kinds = (images > 0) @ (1 << np.arange(images.shape[1]))
    left_over = 0.0  # images that the kinds before got too few of
    for kind in np.unique(kinds):
        rows = generator.permutation(np.flatnonzero(kinds == kind))
        totals = np.concatenate([[0], np.cumsum(images[rows].sum(axis=1))])
        wanted = fraction * totals[-1] + left_over
        count = int(np.argmin(np.abs(totals - wanted)))
        drawn[rows[:count]] = True
        left_over = wanted - totals[count]
    return drawn


def _number_patients(data: Dataset) -> np.ndarray:
    """Return a number for the patient of each row, in the order of their names: int64 [N]."""
    import pyarrow.compute as pc

    coded = pc.dictionary_encode(column(data, "patient"))
    order = pc.array_sort_indices(coded.dictionary).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks[coded.indices.to_numpy()]


def _list_sources(texts: Sequence[str], may_lack: bool = False) -> list[DatasetDict]:
    """Return the parts of every source as it has them, with patients that no two share."""
    from datasets import DatasetDict

    sources = [parse_source(text) for text in texts]
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"Two sources are called {twice!r}; name them: --data_dir A=... B=...")
    listed = []
    for source in sources:
        listing = list_source(source)
        several = len(sources) > 1
        parts = DatasetDict(
            {name: _mark(data, source, several) for name, data in listing.parts.items()}
        )
        for name, data in parts.items():
            _check_one_source(source, name, data, may_lack or several)
        troubles = [*listing.troubles, *_find_both_labels(listing.parts)]
        if several:
            troubles = [
                Trouble(one.kind, f"{source.name}:{one.file}", one.reason, one.count)
                for one in troubles
            ]
        parts.troubles = tuple(troubles)
        listed.append(parts)
    return listed


def _mark(data: Dataset, source: Source, several: bool) -> Dataset:
    """Say in every row where it is from; among several sources, in patients and files too."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Value

    table, features = data.data.table, data.features.copy()
    if several:
        for name in ("patient", "file"):
            told = pc.binary_join_element_wise(source.name, table[name], ":")
            table = table.set_column(table.column_names.index(name), name, told)
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(data), np.int8)), [source.name])
    table = table.append_column("source", names.cast(pa.string()))
    features["source"] = Value("string")
    return to_dataset(table.replace_schema_metadata(None), features)


def _find_both_labels(parts: dict[str, Dataset]) -> list[Trouble]:
    import pyarrow as pa

    patients = pa.concat_arrays([column(data, "patient") for data in parts.values()])
    labels = np.concatenate([column(data, "label").to_numpy() for data in parts.values()])
    coded = patients.dictionary_encode()
    codes = coded.indices.to_numpy()
    seen = np.zeros((len(coded.dictionary), len(LABELS)), np.int64)
    np.add.at(seen, (codes, labels), 1)
    return [
        Trouble(
            "both_labels",
            coded.dictionary[int(code)].as_py(),
            f"{seen[code, 0]} {LABELS[0]}, {seen[code, 1]} {LABELS[1]}",
        )
        for code in np.flatnonzero(seen.all(axis=1))
    ]


def _check_one_source(source: Source, part: str, data: Dataset, may_lack: bool) -> None:
    """Raise, or warn among several sources, if a part lacks a class."""
    counts = np.bincount(column(data, "label").to_numpy(), minlength=len(LABELS))
    for label in np.flatnonzero(counts == 0):
        name = LABELS[label]
        if may_lack and counts.any():
            logger.warning(
                "The %s part of %s has no %s: there, the source tells the class.",
                part,
                source.name,
                name,
            )
            continue
        if source.kind != "folder":
            raise UserError(f"The {part} part of {source.where} has no {name} pictures.")
        folder = _find_part_folder(Path(source.where).expanduser(), part)
        found = [one for one in folder.iterdir() if one.is_dir() and one.name.upper() == name]
        if found:
            raise UserError(f"{found[0]} holds no pictures; put the {name} X-rays there.")
        others = sorted(one.name for one in folder.iterdir() if one.is_dir())
        has = f" (it has {', '.join(others[:5])})" if others else ""
        raise UserError(
            f"{folder} has no {name} folder, and both classes are needed{has}; add {folder / name}."
        )


def _find_part_folder(root: Path, part: str) -> Path:
    inner = (one for one in sorted(root.iterdir()) if PART_NAMES.get(one.name.lower()) == part)
    return next(inner, root)


def _cut(parts: DatasetDict, config: DataConfig, source: str) -> DatasetDict:
    """Cut what a source does not have from its train part, by patient."""
    from datasets import DatasetDict, concatenate_datasets

    own = dict(parts)
    train = own.pop(ALL, None) or own.pop("train", None)
    if train is None:
        raise UserError(
            f"{source} has {' and '.join(own)} but no train part; "
            f"add train/NORMAL and train/PNEUMONIA."
        )
    validation = own.get("validation")
    if validation is not None and len(validation) < config.smallest_validation:
        logger.warning(
            "The val part has %d pictures, too few to choose a model or a threshold on: "
            "it joins train, and a patient-grouped validation part is cut from both "
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
    cut = DatasetDict(own)
    if sum(len(part) for part in cut.values()) != sum(len(part) for part in parts.values()):
        raise AssertionError("pictures were lost between the source and its parts")
    cut.troubles = troubles_of(parts)
    return cut


def _join(several: Sequence[DatasetDict], names: Sequence[str]) -> DatasetDict:
    """Return the parts of several sources as one."""
    from datasets import DatasetDict, concatenate_datasets

    joined = DatasetDict()
    for name in names:
        tables = [parts[name] for parts in several if name in parts]
        if tables:
            joined[name] = tables[0] if len(tables) == 1 else concatenate_datasets(tables)
    joined.troubles = tuple(one for parts in several for one in troubles_of(parts))
    return joined


def _check_classes(parts: DatasetDict, sources: Sequence[str]) -> None:
    for name, data in parts.items():
        counts = np.bincount(column(data, "label").to_numpy(), minlength=len(LABELS))
        if len(sources) > 1 and not counts.all():
            lacking = LABELS[int(np.argmin(counts))]
            raise UserError(f"No source has {lacking} pictures for the {name} part; add some.")


def _warn_of_shared_patients(parts: DatasetDict) -> None:
    import pyarrow.compute as pc

    patients = {name: pc.unique(column(part, "patient")) for name, part in parts.items()}
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
