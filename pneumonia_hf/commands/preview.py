"""Draw a sheet of X-rays as a recipe's augmentation changes them.

pneumonia-hf preview --data_dir DATA --output augment.png \
    --config train_scripts/configs/dinov2-small.yaml --augment_noise 2
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import MISSING, dataclass
from pathlib import Path

from pneumonia_hf.cli import check_inputs, flag, parse_recipe
from pneumonia_hf.errors import UserError, XrayError


@dataclass
class PreviewArguments:
    """The X-rays to augment, and the sheet to write."""

    data_dir: list[str] = flag(MISSING, "Sources of X-rays, as for training.")
    output: str = flag(MISSING, "PNG file to write.")
    image_size: int = flag(224, "Side of the model's input in pixels.")
    seed: int = flag(13, "Seed of the choice of images and the augmentation.")
    overwrite: bool = flag(False, "Replace an older sheet.")

    def __post_init__(self) -> None:
        from pneumonia_hf.data.sources import parse_source

        path = Path(self.output)
        if path.suffix.lower() != ".png":
            raise UserError(f"{path} does not end in .png; call it {path.stem}.png.")
        if path.is_dir():
            raise UserError(f"{path} is a folder; --output takes a file.")
        if path.exists() and not self.overwrite:
            raise UserError(f"{path} exists; choose another --output, or give --overwrite.")
        if not 16 <= self.image_size <= 1024:
            raise UserError(f"image_size is {self.image_size}; give 16 to 1024.")
        sources = [parse_source(one) for one in self.data_dir]
        check_inputs(data_folders=[one.where for one in sources if one.is_folder])


def main() -> None:
    """Read recipe and flags, draw the sheet, and print its path."""
    from pneumonia_hf.data.load import DataConfig, load_splits
    from pneumonia_hf.data.sources import open_images
    from pneumonia_hf.imaging.preprocess import make_processor, resize
    from pneumonia_hf.imaging.read import read_xray
    from pneumonia_hf.labels import LABELS
    from pneumonia_hf.models.build import ModelConfig
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.augment import draw_preview
    from pneumonia_hf.training.recipe import AugmentConfig

    options, config = parse_recipe(
        [PreviewArguments, AugmentConfig],
        others=[DataConfig, ModelConfig, XrayTrainingArguments],
        description=__doc__,
    )

    splits = load_splits(options.data_dir)
    split = splits.get("train") or next(iter(splits.values()))
    order = list(range(len(split)))
    random.Random(options.seed).shuffle(order)
    drawn = split.select(order)
    images: list[list] = [[] for _ in LABELS]
    for label, (_, image) in zip(drawn["label"], open_images(drawn), strict=True):
        if len(images[label]) < 2:
            with suppress(XrayError):  # another image is tried
                images[label].append(read_xray(image))
        elif all(len(of_class) == 2 for of_class in images):
            break
    images = [one for pair in zip(*images, strict=False) for one in pair]
    if not images:
        raise UserError(f"No image in {' '.join(options.data_dir)} can be read.")
    processor = make_processor(options.image_size, (0.5,) * 3, (0.5,) * 3)
    figure = draw_preview(resize(images, processor), config, seed=options.seed)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110, metadata={"Software": None})
    print(f"The sheet is {options.output}; its rows alternate between NORMAL and PNEUMONIA.")
