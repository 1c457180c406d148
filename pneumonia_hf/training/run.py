"""A run, prepared: its folder is cleared, its images are decoded, its state is written."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from pneumonia_hf.audit.run import audit_briefly
from pneumonia_hf.data.boxes import BOXES
from pneumonia_hf.data.cache import decode_splits
from pneumonia_hf.data.file_hashes import to_hex
from pneumonia_hf.data.table import CLASS, NO_METADATA
from pneumonia_hf.distributed import broadcast_from_main
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.perturbations import ROBUST
from pneumonia_hf.labels import LABELS
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.boxes import add_boxes
from pneumonia_hf.training.checkpoints import CHECKPOINTS, UNFINISHED
from pneumonia_hf.training.counterfactuals import CounterfactualPixels
from pneumonia_hf.training.distillation import UNLABELLED, Teacher, load_teacher, load_unlabelled
from pneumonia_hf.training.interruption import StopRequest
from pneumonia_hf.training.phases import Phase
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run_state import clear, create_run_state, describe_run, fingerprint

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BaseImageProcessor, TrainerCallback

    from pneumonia_hf.data.pixel_store import XrayPixels
    from pneumonia_hf.data.table import XrayData

AUDITED: set[tuple] = set()  # fingerprints of the data whose audit this process has printed


@dataclass(frozen=True)
class Images:
    """The images of a run, decoded."""

    data: XrayData  # without those that cannot be read
    # Of each split, and of UNLABELLED:
    pixels: dict[str, XrayPixels]
    hashes: dict[str, list[str]]
    fingerprints: dict[str, str]
    sites: np.ndarray  # number of the source of each training image, [N]
    cells: np.ndarray | None  # number of the values of `arguments.balance` of each, [N]
    # What the network learns: the training images with their boxes, if the loss needs them, and
    # with the class of OTHER, if it has one.
    train: XrayPixels

    @property
    def further_prints(self) -> dict[str, str]:
        """SHA-256 of what else of the training images decides the weights, as of `fingerprints`."""
        found = {"sites": self.sites, "balanced columns": self.cells, "classes": self.train.labels}
        found["boxes"] = getattr(self.train, "boxes", None)
        return {
            f"{name} of training": hashlib.sha256(str(np.asarray(of).tolist()).encode()).hexdigest()
            for name, of in found.items()
            if of is not None
        }


@dataclass(frozen=True)
class Run:
    """All that a run trains with, besides the model."""

    recipe: Recipe
    arguments: XrayTrainingArguments
    processor: BaseImageProcessor
    phases: Sequence[Phase]
    images: Images
    validation: XrayPixels | CounterfactualPixels
    teacher: Teacher | None
    callbacks: Sequence[TrainerCallback]
    stop: StopRequest
    run_id: str
    started: float  # by the monotonic clock

    @property
    def folder(self) -> Path:
        """The folder that becomes the model folder."""
        return Path(self.arguments.output_dir)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and saves."""
        return self.arguments.process_index == 0


def prepare_run(
    processor: BaseImageProcessor,
    data: XrayData,
    recipe: Recipe,
    arguments: XrayTrainingArguments,
    callbacks: Sequence[TrainerCallback],
    stop: StopRequest,
) -> Run:
    """Clear the output folder of an older run, decode and audit the images, write the run state."""
    started, folder = time.monotonic(), Path(arguments.output_dir)
    is_main = arguments.process_index == 0
    phases = arguments.read_phases(recipe.model.trainable_layer_groups)
    if is_main:
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # of a killed run
        if arguments.overwrite:
            clear(folder)  # the old model stays until the new one is saved
    PartialState().wait_for_everyone()
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    images = decode_images(data, processor, recipe, arguments)
    teacher = None
    if arguments.teacher:
        teacher = load_teacher(
            arguments.teacher,
            images.hashes,
            arguments.teacher_positive_label,
            images.pixels.get(UNLABELLED),
            arguments.unlabelled_share,
        )
    if is_main and arguments.unlabelled:
        count = len(images.pixels[UNLABELLED])
        print(f"{count} unlabelled images are scored by the teacher.", flush=True)
    _check_same_images(images.fingerprints)
    audited = tuple(sorted(images.fingerprints.items()))
    if is_main and audited not in AUDITED:
        AUDITED.add(audited)
        print(
            audit_briefly(images.data, {name: images.pixels[name] for name in images.data}),
            flush=True,
        )
    settings = describe_run(recipe, images.fingerprints | images.further_prints, arguments)
    run_id = broadcast_from_main(create_run_state, folder, settings, arguments.resume)
    validation = images.pixels["validation"]
    if arguments.metric_for_best_model == ROBUST:
        validation = CounterfactualPixels(validation)
    return Run(
        recipe, arguments, processor, phases, images, validation, teacher, callbacks, stop,
        run_id, started,
    )  # fmt: skip


def decode_images(
    data: XrayData,
    processor: BaseImageProcessor,
    recipe: Recipe,
    arguments: XrayTrainingArguments,
) -> Images:
    """Return all images at the model's size; unreadable ones are logged and left out.

    Of the unlabelled images of `arguments`, those of validation and test are left out.

    Raises:
        UserError: no image has a box, the column to balance by, or another class.
    """
    data, pixels = decode_splits(data, processor, strict=recipe.data.strict)
    hashes = {name: to_hex(split.hashes) for name, split in pixels.items()}
    if arguments.unlabelled:
        held_out = {*hashes["validation"], *hashes["test"]}
        pixels[UNLABELLED] = load_unlabelled(arguments.unlabelled, processor, recipe.data, held_out)
        hashes[UNLABELLED] = to_hex(pixels[UNLABELLED].hashes)
    # By their names, so that the numbers do not depend on the order of the sources.
    _, sites = np.unique(data["train"]["source"][:], return_inverse=True)
    prints = {name: fingerprint(hashes[name], split.labels) for name, split in pixels.items()}
    cells = number_cells(data["train"], arguments.balance) if arguments.balance else None
    train = pixels["train"]
    if recipe.model.other_class:
        train = replace(train, labels=number_classes(data["train"]))
    if arguments.box_weight and (train := add_boxes(train, data["train"])) is None:
        raise UserError(
            f"No training image has a box; give a metadata.csv with the column {BOXES}, or leave "
            f"--box_weight out."
        )
    return Images(data, pixels, hashes, prints, sites, cells, train)


def number_classes(data: Dataset) -> np.ndarray:
    """Return the class of each image, with OTHER as the third: int64 [N].

    Raises:
        UserError: no image is of another class.
    """
    names = data[CLASS][:] if CLASS in data.column_names else []
    is_other = np.array([bool(name) and name not in LABELS for name in names])
    if not is_other.any():
        raise UserError(
            f"No training image is of a class besides {' and '.join(LABELS)}; give a source as "
            f"one_vs_rest:FOLDER, or leave --other_class out."
        )
    labels = np.asarray(data["label"][:])
    return np.where(is_other & (labels == 0), len(LABELS), labels)


def number_cells(data: Dataset, names: Sequence[str]) -> np.ndarray:
    """Return a number for the values of the columns `names` in each row: [N].

    Raises:
        UserError: no source has such a column.
    """
    if missing := [name for name in names if name not in data.column_names]:
        has = ", ".join(sorted({*data.column_names} - NO_METADATA))
        raise UserError(f"No source has the column {missing[0]} for --balance (they have {has}).")
    values = np.array([[cell or "" for cell in data[name][:]] for name in names])
    return np.unique(values, axis=1, return_inverse=True)[1]


def _check_same_images(fingerprints: dict[str, str]) -> None:
    found = gather_object([fingerprints])  # of all processes
    if different := [number for number, own in enumerate(found) if own != found[0]]:
        # The processes would wait for each other's batches without end.
        raise UserError(
            f"Process {different[0]} has other images than process 0; "
            f"give all machines the same data."
        )
