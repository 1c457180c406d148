"""Folders of X-rays -> parts of image, label and patient -> pixels at the model's size."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.xray import is_picture_file, read_xray

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from PIL import Image
    from torch import Tensor
    from transformers import BaseImageProcessor

logger = logging.getLogger(__name__)

LABELS = ("NORMAL", "PNEUMONIA")  # a label's place is its class number
PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# File names of the Kermany set: one patient has up to 30 pictures.
KERMANY_NAME = re.compile(r"^(person\d+)_(?:bacteria|virus)_\d+|^((?:NORMAL2-)?IM-\d+)-\d+")


@dataclass
class DataConfig:
    """Where the X-rays are and how they are parted."""

    data_dir: str = field(
        metadata={"help": "Folder with train/ val/ test/, or with NORMAL/ and PNEUMONIA/ only."}
    )
    data_name: str | None = field(
        default=None,
        metadata={"help": "What the model card calls the data; left out, the folder's name."},
    )
    validation_fraction: float = field(
        default=0.15, metadata={"help": "Share of the patients cut off as validation part."}
    )
    test_fraction: float = field(
        default=0.15, metadata={"help": "Share of the patients cut off as test part."}
    )
    smallest_validation: int = field(
        default=100,
        metadata={"help": "A val/ part with fewer pictures joins train/, and another is cut."},
    )
    split_seed: int = field(default=13, metadata={"help": "Seed of the patient-grouped cut."})
    augment_strength: float = field(
        default=1.0, metadata={"help": "Augmentation in training: 1 as usual, 0 none."}
    )

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) <= 0.5:
                raise UserError(f"{name} is {getattr(self, name)}; give a share in 0..0.5.")
        if not 0 <= self.split_seed < 2**32:
            raise UserError(f"split_seed is {self.split_seed}; give 0 or more.")
        if self.augment_strength < 0:
            raise UserError(f"augment_strength is {self.augment_strength}; give 0 or more.")


def load_xrays(config: DataConfig) -> DatasetDict:
    """Return the parts `train`, `validation` and `test`, each with image, label and patient.

    Parts that the folder does not have are cut from its train part, grouped by patient and
    balanced by class. `image` holds the path (`Image(decode=False)`), `label` is 0 for NORMAL
    and 1 for PNEUMONIA, `patient` is a name that no two patients share.

    Raises:
        UserError: the folder is missing, holds one class only, or is too small to be parted.
    """
    from datasets import DatasetDict, concatenate_datasets

    parts = load_parts(config.data_dir)
    train = parts.pop("all", None) or parts.pop("train", None)
    if train is None:
        raise UserError(
            f"{config.data_dir} has {' and '.join(parts)} but no train folder; "
            f"add train/NORMAL and train/PNEUMONIA."
        )
    validation = parts.get("validation")
    if validation is not None and len(validation) < config.smallest_validation:
        logger.warning(
            "The val part has %d pictures, too few to choose a model or a threshold on: "
            "it joins train, and a patient-grouped validation part is cut from both "
            "(--smallest_validation 0 keeps it as it is).",
            len(validation),
        )
        train = concatenate_datasets([train, parts.pop("validation")])
    # Both shares are of all patients: the second cut is from what the first has left.
    if "test" not in parts:
        train, parts["test"] = split_by_patient(train, config.test_fraction, config.split_seed)
        left = 1 - config.test_fraction
    else:
        left = 1.0
    if "validation" not in parts:
        train, parts["validation"] = split_by_patient(
            train, config.validation_fraction / left, config.split_seed
        )
    parts["train"] = train
    _warn_of_shared_patients(parts)
    return DatasetDict({name: parts[name] for name in ("train", "validation", "test")})


def load_parts(data_dir: str | Path) -> dict[str, Dataset]:
    """Return the parts as the folder has them: `train`, `validation`, `test`, or `all`.

    `all` stands for a folder that holds the class folders themselves.

    Raises:
        UserError: the folder is missing, has neither parts nor classes, or lacks a class.
    """
    root = Path(data_dir).expanduser()
    if not root.exists():
        raise UserError(f"The data folder {root} does not exist; check --data_dir.")
    if not root.is_dir():
        raise UserError(f"{root} is a file; --data_dir takes a folder.")
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir()]
    if any(folder.name.upper() in LABELS for folder in folders):
        return {"all": _load_part(root, root, prefix="")}
    parts = {}
    for folder in folders:
        name = PART_NAMES.get(folder.name.lower())
        if name is None:
            continue
        if name in parts:
            raise UserError(f"{root} has two {name} folders; keep one of them.")
        # A Kermany person number stands for a patient only within one part.
        parts[name] = _load_part(root, folder, prefix=f"{name}/")
    if not parts:
        inner = next((f for f in folders if _looks_like_data(f)), None)
        hint = f"did you mean {inner}?" if inner else "put the pictures into such folders."
        raise UserError(
            f"{root} has neither train/ val/ test/ nor NORMAL/ and PNEUMONIA/ folders; {hint}"
        )
    return parts


def split_by_patient(data: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return `data` in two parts, the second with about `fraction` of it, no patient in both.

    Classes keep their shares (scikit-learn's StratifiedGroupKFold, of which some folds are cut).

    Raises:
        UserError: too few patients of a class for such a cut.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds, share = min(
        ((n, m) for n in range(2, 11) for m in range(1, n)),
        key=lambda pair: abs(pair[1] / pair[0] - fraction),
    )
    labels, patients = data["label"][:], data["patient"][:]
    for label, name in enumerate(LABELS):
        count = len({p for p, one in zip(patients, labels, strict=True) if one == label})
        if count < folds:
            raise UserError(
                f"{count} patients with {name} are too few to cut off a part of {fraction:.0%}; "
                f"give more pictures, or train/, val/ and test/ folders."
            )
    cutter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    parts = [rows for _, rows in cutter.split(labels, labels, patients)]
    cut, kept = np.concatenate(parts[:share]), np.concatenate(parts[share:])
    for rows in (kept, cut):
        if len({labels[row] for row in rows}) < len(LABELS):
            raise UserError("Too few patients to give both classes to every part; add pictures.")
    return data.select(sorted(kept)), data.select(sorted(cut))


@dataclass(frozen=True)
class XrayPixels:
    """One part in memory, decoded once: a torch data set of `pixel_values` and `labels`."""

    pixels: Tensor  # uint8 [N, 1, H, W], as the processor resizes
    labels: tuple[int, ...]
    hashes: tuple[str, ...]  # of the files' bytes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def decode(data: Dataset, processor: BaseImageProcessor, name: str = "") -> XrayPixels:
    """Read every picture of `data` once, in parallel, and keep it at the model's size.

    A grey byte a pixel: 50 KB a picture at 224 pixels squared.

    Raises:
        UserError: some files cannot be read; it names the first of them.
    """
    import torch
    from tqdm.auto import tqdm

    from pneumonia_hf.preprocess import resize

    paths = image_paths(data)
    pixels, hashes, unreadable = [], [], []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), desc=f"Reading {name}", unit="image", leave=False) as bar,
    ):
        for start in range(0, len(paths), 64):
            chunk = paths[start : start + 64]
            readings = list(pool.map(_read_and_hash, chunk))
            unreadable += [reading for reading in readings if isinstance(reading, XrayError)]
            if not unreadable:
                pixels.append(resize([picture for picture, _ in readings], processor))
                hashes += [digest for _, digest in readings]
            bar.update(len(chunk))
    if unreadable:
        first = " ".join(str(error) for error in unreadable[:3])
        raise UserError(
            f"{len(unreadable)} of {len(paths)} files cannot be read; mend or remove them: {first}"
        )
    return XrayPixels(torch.cat(pixels), tuple(data["label"][:]), tuple(hashes))


def image_paths(data: Dataset) -> list[Path]:
    """Return the file of each row, in order."""
    return [Path(image["path"]) for image in data["image"][:]]


def hash_files(data: Dataset) -> tuple[str, ...]:
    """Return 16 hex digits that stand for the bytes of each row's file (SHA-256, shortened).

    Raises:
        UserError: a file cannot be opened.
    """
    try:
        with ThreadPoolExecutor() as pool:
            return tuple(pool.map(_hash_file, image_paths(data)))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be opened: {error.strerror}.") from error


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _read_and_hash(path: Path) -> tuple[Image.Image, str] | XrayError:
    try:
        return read_xray(path), _hash_file(path)
    except XrayError as error:
        return error


def _load_part(root: Path, folder: Path, prefix: str) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    patient_ids = _read_patient_ids(root) | _read_patient_ids(folder)
    images, labels, patients = [], [], []
    strangers = 0
    for label, name in enumerate(LABELS):
        files = _list_class(folder, name)
        for path in files:
            match = KERMANY_NAME.match(path.name)
            if path.resolve() in patient_ids:
                patient = patient_ids[path.resolve()]
            elif match:
                # Other software names films so too, in a folder for each patient.
                inner = "/".join(path.relative_to(folder).parts[1:-1])
                patient = f"{prefix}{inner}{'/' if inner else ''}{match[1] or match[2]}"
            else:
                patient = prefix + path.relative_to(folder).as_posix()
                strangers += 1
            images.append({"path": str(path), "bytes": None})
            labels.append(label)
            patients.append(patient)
    if strangers:
        logger.warning(
            "%d of the %d files in %s do not tell their patient: each counts as a patient of its "
            "own. A metadata.csv with file_name and patient_id would tell.",
            strangers,
            len(images),
            folder,
        )
    features = Features(
        {
            "image": ImageFeature(decode=False),
            "label": ClassLabel(names=list(LABELS)),
            "patient": Value("string"),
        }
    )
    return Dataset.from_dict(
        {"image": images, "label": labels, "patient": patients}, features=features
    )


def _list_class(folder: Path, name: str) -> Sequence[Path]:
    """Return the pictures of one class, sorted by name."""
    found = [f for f in folder.iterdir() if f.is_dir() and f.name.upper() == name]
    others = sorted(
        f.name
        for f in folder.iterdir()
        if f.is_dir() and f.name.upper() not in LABELS and not f.name.startswith((".", "_"))
    )
    if not found:
        raise UserError(
            f"{folder} has no {name} folder, and both classes are needed"
            + (f" (it has {', '.join(others[:5])})" if others else "")
            + f"; add {folder / name}."
        )
    if others and name == LABELS[0]:
        logger.warning("Not used, being neither class: %s in %s.", ", ".join(others[:5]), folder)
    files = [
        path
        for class_folder in found
        for path in class_folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]
    pictures = sorted(path for path in files if is_picture_file(path))
    if not pictures:
        raise UserError(f"{found[0]} holds no pictures; put the {name} X-rays there.")
    if len(pictures) < len(files):
        others = sorted(path.name for path in set(files) - set(pictures))
        logger.warning(
            "%d files in %s do not look like pictures and are left out: %s.",
            len(others),
            found[0],
            ", ".join(others[:5]),
        )
    return pictures


def _read_patient_ids(folder: Path) -> dict[Path, str]:
    """Return the patient of each file that the folder's metadata.csv names."""
    table = folder / "metadata.csv"
    if not table.is_file():
        return {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read as a CSV file in UTF-8: {error}.") from error
    if not rows or not {"file_name", "patient_id"} <= rows[0].keys():
        logger.warning("%s lacks the columns file_name and patient_id: it is not used.", table)
        return {}
    return {
        (folder / row["file_name"]).resolve(): row["patient_id"]
        for row in rows
        if row["file_name"] and row["patient_id"]
    }


def _looks_like_data(folder: Path) -> bool:
    names = {entry.name.lower() for entry in folder.iterdir() if entry.is_dir()}
    return bool(names & (PART_NAMES.keys() | {label.lower() for label in LABELS}))


def _warn_of_shared_patients(parts: dict[str, Dataset]) -> None:
    patients = {name: set(part["patient"][:]) for name, part in parts.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = patients[one] & patients[other]
        if shared:
            logger.warning(
                "%d patients are both in %s and in %s (%s, ...): numbers measured there flatter.",
                len(shared),
                one,
                other,
                sorted(shared)[0],
            )
