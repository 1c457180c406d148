"""Recipe: what a run is made of besides the Trainer's arguments, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pneumonia_hf.cli import check_inputs, flag, parse_recipe
from pneumonia_hf.data.load import DataConfig
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.errors import UserError
from pneumonia_hf.models.build import ModelConfig


@dataclass
class AugmentConfig:
    """Strength of each operation of `augment`: 1 is the usual one, 0 is off."""

    augment_strength: float = flag(1.0, "Multiplies all strengths below; 0: no augmentation.")
    augment_rotation: float = flag(1.0, "1: up to 7 degrees.")
    augment_zoom: float = flag(1.0, "1: up to a tenth in or out.")
    augment_crop: float = flag(1.0, "1: a window of 0.6 to 1 of each side, stretched by 0.15.")
    augment_translation: float = flag(1.0, "1: up to a twentieth of the width and height.")
    augment_flip: float = flag(
        0.0, "1: half of the images are mirrored. Off, since the heart lies on one side."
    )
    augment_histogram: float = flag(
        0.0, "1: the gray levels of another image of the batch, by up to all, in 4 of 10 images."
    )
    augment_brightness: float = flag(1.0, "1: up to 38 of 255 gray levels.")
    augment_contrast: float = flag(1.0, "1: up to a quarter more or less.")
    augment_gamma: float = flag(1.0, "1: gamma of 0.65 to 1.35.")
    augment_sharpness: float = flag(1.0, "1: an unsharp mask of up to 1.2.")
    augment_resolution: float = flag(1.0, "1: reduced to 0.4 to 1 of the pixels of each side.")
    augment_blur: float = flag(1.0, "1: a Gaussian of up to 1.6 pixels.")
    augment_noise: float = flag(1.0, "1: a standard deviation of 7.6 of 255 gray levels.")
    augment_frame: float = flag(1.0, "1: up to 0.3 of each side is replaced, in 7 of 10 images.")
    augment_marker: float = flag(1.0, "1: letters and blocks of 0.03 to 0.2 of the width.")
    augment_clahe: float = flag(1.0, "Local contrast; 1: a clip limit of 1 to 3.")
    augment_jpeg: float = flag(1.0, "1: a JPEG quality of 90 to 30.")
    augment_erasing: float = flag(1.0, "1: a rectangle of 0.02 to 0.08 of the image.")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value}; give 0 (off), 1 (usual) or more.")
        if self.augment_flip > 1:
            raise UserError(
                f"augment_flip is {self.augment_flip}; 1 mirrors half of the images, give 0..1."
            )

    def strengths(self) -> dict[str, float]:
        """Return the strength of each operation that is on, by name."""
        found = {
            name.removeprefix("augment_"): self.augment_strength * value
            for name, value in vars(self).items()
            if name != "augment_strength"
        }
        return {name: strength for name, strength in found.items() if strength > 0}


@dataclass(frozen=True)
class Recipe:
    """What a run is made of besides the Trainer's arguments."""

    data: DataConfig
    model: ModelConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def parse_run(
    *more: type, arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple:
    """Return a Recipe, XrayTrainingArguments and one object for each dataclass of `more`.

    Args:
        more: further dataclasses.
        arguments: the command line; by default that of the process.
        description: for --help.

    Raises:
        UserError: as `parse_recipe`; a data folder does not exist.
    """
    from pneumonia_hf.training.arguments import XrayTrainingArguments

    kinds = [DataConfig, ModelConfig, AugmentConfig, XrayTrainingArguments, *more]
    data, model, augment, *others = parse_recipe(kinds, arguments, description=description)
    sources = map(parse_source, data.data_dir)
    check_inputs(data_folders=[source.where for source in sources if source.is_folder])
    return (Recipe(data, model, augment), *others)
