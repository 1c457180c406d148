"""Measure how much the data pipeline slows down a training step.

python benchmarks/feeding.py --data_dir DATA [--full_size DATA_OF_FULL_SIZE]

1. The pipeline of `train.py` (cache, batch, augmentation, normalisation) against the same step on
   batches in memory, for a small ConvNeXt and a small ViT, in the precision and memory format that
   `train` uses.
2. The same against transformers' example `run_image_classification`: images from files by the
   datasets library, Pillow transforms by `with_transform`, the Trainer's default arguments; for
   EfficientNet-B0, 4 M parameters. All arms compute in fp32, so that one thing differs at a time.

A step is the Trainer's own `training_step` on the model that accelerate has prepared (autocast,
torch.compile), then clipping and the update. The arms take turns, a step each, in one process, so
that other load affects all of them; speeds and ratios are of the medians, except for the last
column, which is of the totals. Only complete batches count. The models are randomly initialised:
speed does not depend on the weights. Prints tables in Markdown.
"""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _shared import (
    BACKBONE_OF,
    MODELS,
    describe_machine,
    describe_speed,
    make_example,
    wait,
)

from pneumonia_hf.cli import make_parser, run_script

EXAMPLE = "the example's way"
READY = 8  # batches in memory, used in turn


def main() -> None:
    """Run both comparisons, and print a table for each."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="Class folders of X-rays.")
    parser.add_argument("--full_size", type=Path, help="Class folders of X-rays of full size.")
    parser.add_argument("--steps", type=int, default=40, help="Counted steps of each arm.")
    parser.add_argument("--warmup", type=int, default=5, help="Steps of each arm before those.")
    parser.add_argument("--batch", type=int, default=16, help="Images a batch.")
    parser.add_argument("--image_size", type=int, default=224, help="Pixels a side.")
    parser.add_argument(
        "--no_compile",
        action="store_true",
        help="Leave out the arm with torch.compile, which is slow to start.",
    )
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="Measure the CPU seconds of one thread: for a CPU shared with other work.",
    )
    options = parser.parse_args()
    logging.getLogger("pneumonia_hf").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as work:
        os.environ["PNEUMONIA_HF_CACHE"] = str(Path(work) / "cache")
        measure(options, Path(work))


def measure(options, work: Path) -> None:
    """Print both tables."""
    if options.cpu_time:
        import torch

        torch.set_num_threads(1)
    print(
        f"{describe_machine()}; batch {options.batch}, {options.image_size} pixels, "
        f"{options.steps} steps an arm{', CPU seconds of one thread' * options.cpu_time}.\n"
    )
    print("| model | computed in | from memory, images/s | fed, images/s | ratio | of totals |")
    print("|---|---|---|---|---|---|")
    for name in ("convnextv2-atto", "vit-tiny"):
        speed, times = compare_with_memory(name, options, work)
        in_memory, fed = (
            options.batch / statistics.median(times[arm]) for arm in ("memory", "fed")
        )
        total = sum(times["memory"]) / sum(times["fed"])
        rates = f"{in_memory:.1f} | {fed:.1f} | {fed / in_memory:.3f} | {total:.3f}"
        row = f"{name} | {speed} | {rates}"
        print(f"| {row} |", flush=True)
    print("\n| images | arm | images/s | ratio to the example's way | of totals |")
    print("|---|---|---|---|---|")
    for folder in filter(None, (options.data_dir, options.full_size)):
        times = compare_with_example(folder, options, work)
        base = options.batch / statistics.median(times[EXAMPLE])
        for arm, seconds in times.items():
            speed = options.batch / statistics.median(seconds)
            total = sum(times[EXAMPLE]) / sum(seconds)
            row = f"{folder.name} | {arm} | {speed:.1f} | {speed / base:.2f} | {total:.2f}"
            print(f"| {row} |", flush=True)


def load_images(folder: Path, batch: int):
    """Return the rows of a folder, all splits together."""
    from pneumonia_hf.data.load import load_splits
    from pneumonia_hf.errors import UserError

    data = load_splits(folder)
    if set(data) != {"all"}:
        raise UserError(f"{folder} must hold the class folders themselves, not train/ and test/.")
    if len(data["all"]) < batch:
        raise UserError(f"{folder} holds {len(data['all'])} images; a batch takes {batch}.")
    return data["all"]


def make_trainer(model, folder: Path, options, work: Path, channels_last: bool, **changes):
    """Return our trainer on the images of a folder, as `train` makes it.

    `changes` are for its arguments; without `precision`, it is the one that `train` uses.
    """
    import torch

    from pneumonia_hf.data.cache import decode
    from pneumonia_hf.data.load import DataConfig
    from pneumonia_hf.imaging.preprocess import make_processor
    from pneumonia_hf.models.build import ModelConfig
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.losses import XrayLoss
    from pneumonia_hf.training.recipe import Recipe
    from pneumonia_hf.training.train import take_batch
    from pneumonia_hf.training.trainer import XrayTrainer

    processor = make_processor(options.image_size, (0.5,) * 3, (0.5,) * 3)
    images = decode(load_images(folder, options.batch), processor).pixels
    arguments = XrayTrainingArguments(
        output_dir=str(work / "ours"),
        per_device_train_batch_size=options.batch,
        report_to=["none"],
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        dataloader_drop_last=True,
        disable_tqdm=True,
        cpu_threads=1 if options.cpu_time else None,  # of the whole process, the example too
        **changes,
    )
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return XrayTrainer(
        model=model,
        args=arguments,
        processing_class=processor,
        train_dataset=images,
        data_collator=take_batch,
        recipe=Recipe(DataConfig([str(folder)]), ModelConfig(channels_last=channels_last)),
        compute_loss_func=XrayLoss(images.labels, arguments),
        sites=np.zeros(len(images)),
    )


def compare_with_memory(name: str, options, work: Path) -> tuple[str, dict[str, list[float]]]:
    """Return precision and format, and the seconds of each step, fed and from memory."""
    from pneumonia_hf.models.backbones import BACKBONES

    channels_last = BACKBONES[BACKBONE_OF[name]].channels_last
    model = MODELS[name](options.image_size)
    trainer = make_trainer(model, options.data_dir, options, work, channels_last)
    step = make_step(trainer)
    batches = endless(trainer.get_train_dataloader())
    feed = trainer.prepare_batch  # augments and normalises, as `training_step` calls it
    trainer.model.train()  # else it would not augment
    ready = [dict(feed(next(batches))) for _ in range(READY)]

    def from_memory(number: int) -> None:
        trainer.prepare_batch = lambda inputs: inputs
        step(dict(ready[number % len(ready)]))  # a copy: the loss takes the labels out

    def fed(_: int) -> None:
        trainer.prepare_batch = feed
        step(next(batches))

    speed = describe_speed(trainer.args.computed_precision, channels_last)
    return speed, take_turns({"memory": from_memory, "fed": fed}, options)


def compare_with_example(folder: Path, options, work: Path) -> dict[str, list[float]]:
    """Return the seconds of each step of the example, and of ours in several ways."""

    def make_arm(trainer) -> Callable[[int], None]:
        step, batches = make_step(trainer), endless(trainer.get_train_dataloader())
        return lambda _: step(next(batches))

    def make_model():
        return MODELS["efficientnet-b0"](options.image_size)

    ways = {
        "ours, fp32": {"channels_last": False},
        "ours, fp32, channels_last": {"channels_last": True},
        "ours, fp32, channels_last, --torch_compile": {
            "channels_last": True,
            "torch_compile": True,
        },
    }
    if options.no_compile:
        ways.popitem()
    example = make_example(
        make_model(),
        load_images(folder, options.batch),
        options.image_size,
        work / "example",
        per_device_train_batch_size=options.batch,
        dataloader_drop_last=True,
    )
    arms = {EXAMPLE: make_arm(example)}
    for name, way in ways.items():
        # Prepared before the next is created: accelerate's state belongs to the newest trainer.
        trainer = make_trainer(make_model(), folder, options, work, precision="fp32", **way)
        arms[name] = make_arm(trainer)
    return take_turns(arms, options)


def endless(loader) -> Iterator[dict]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from loader


def make_step(trainer) -> Callable[[dict], None]:
    """Return a whole training step of a trainer: forward, backward, clip, update."""
    import torch

    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # which Trainer.train would set
    # As in Trainer.train; without it there is neither autocast nor torch.compile.
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    parameters = [one for one in trainer.model.parameters() if one.requires_grad]

    def step(batch: dict) -> None:
        trainer.training_step(model, batch)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait(trainer.args.device)

    return step


def take_turns(arms: dict[str, Callable[[int], None]], options) -> dict[str, list[float]]:
    """Run the arms step by step in turn, and return the seconds of each step that counts."""
    # Of one thread alone, CPU seconds are what it computes: several wait for each other busily.
    read_clock = time.process_time if options.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(options.warmup + options.steps):
        for name, arm in arms.items():
            started = read_clock()
            arm(number)
            if number >= options.warmup:
                times[name].append(read_clock() - started)
    return times


if __name__ == "__main__":
    run_script(main)
