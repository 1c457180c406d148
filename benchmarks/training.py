"""Measure the cost of the whole training loop, and its gain over transformers' example.

python benchmarks/training.py --data_dir DATA [--models convnextv2-atto vit-tiny ...]

1. Steps a second of `train`, as train.py calls it (cache, augmentation, loss, logging, Trainer),
   against a bare PyTorch loop of the same model, batch and precision on batches in memory. The two
   take turns, a step each, in one process: the bare step runs in a callback of the Trainer, so
   that other load affects both.
2. A whole epoch with its evaluation and checkpoint, in turns, against transformers' example
   `run_image_classification`: imagefolder, Pillow transforms, the Trainer's defaults.

The models are randomly initialised: speed does not depend on the weights. Prints tables in
Markdown.
"""

import copy
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from _shared import (
    BACKBONE_OF,
    MODELS,
    describe_machine,
    describe_speed,
    make_example,
    wait,
)

from pneumonia_hf.cli import make_parser, run_script


def main() -> None:
    """Run both comparisons, and print a table for each."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="Class folders of X-rays.")
    parser.add_argument(
        "--models", nargs="+", choices=sorted(MODELS), default=["convnextv2-atto", "vit-tiny"]
    )
    parser.add_argument(
        "--epoch_models",
        nargs="*",
        choices=sorted(MODELS),
        default=["resnet50", "efficientnet-b0", "vit-tiny"],
    )
    parser.add_argument(
        "--steps", type=int, default=40, help="Counted steps of each arm of the first table."
    )
    parser.add_argument("--warmup", type=int, default=5, help="Steps of each arm before those.")
    parser.add_argument("--batch", type=int, default=16, help="Images a batch.")
    parser.add_argument("--image_size", type=int, default=224, help="Pixels a side.")
    parser.add_argument("--images", type=int, default=320, help="Images an epoch.")
    parser.add_argument("--rounds", type=int, default=2, help="Rounds of the second table.")
    options = parser.parse_args()
    logging.getLogger("pneumonia_hf").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["PNEUMONIA_HF_CACHE"] = str(work / "cache")
        print(describe(options), flush=True)
        print(
            "\n| model | computed in | bare loop, images/s | train, images/s | ratio | of totals |"
        )
        print("|---|---|---|---|---|---|")
        for name in options.models:
            print(f"| {name} | {' | '.join(compare_loops(name, options, work))} |", flush=True)
        if not options.epoch_models:
            return
        print("\n| model | computed in | the example's epoch, s | train's epoch, s | ratio |")
        print("|---|---|---|---|---|")
        for name in options.epoch_models:
            for row in compare_epochs(name, options, work):
                print(f"| {name} | {' | '.join(row)} |", flush=True)


def describe(options) -> str:
    """Return the machine and the settings."""
    return (
        f"{describe_machine()}; batch {options.batch}, {options.image_size} pixels; "
        f"{options.steps} steps an arm; epochs of {options.images} images."
    )


def prepare(options):
    """Return as many images as an epoch takes, split as by train.py."""
    import numpy as np

    from pneumonia_hf.data.load import DataConfig, load_xrays
    from pneumonia_hf.data.table import XrayData, take
    from pneumonia_hf.imaging.preprocess import make_processor

    config = DataConfig([str(options.data_dir)])
    data = load_xrays(config)
    generator = np.random.default_rng(13)
    sizes = {"train": options.images, "validation": options.images // 5, "test": 16}
    splits = {
        name: take(data[name], sorted(generator.permutation(len(data[name]))[:size]))
        for name, size in sizes.items()
    }
    return config, XrayData(splits), make_processor(options.image_size, (0.5,) * 3, (0.5,) * 3)


def run_ours(model, options, work: Path, name: str, callbacks=(), **changes):
    """Train as train.py does, into a temporary folder; return precision and memory format."""
    from pneumonia_hf.models.build import ModelConfig
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.recipe import Recipe
    from pneumonia_hf.training.train import train

    config, data, processor = prepare(options)
    folder = work / "run"
    arguments = XrayTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=options.batch,
        report_to=["none"],
        disable_tqdm=True,
        **changes,
    )
    with silence():
        recipe = Recipe(config, ModelConfig(BACKBONE_OF[name]))
        train(model, processor, data, recipe, arguments, callbacks)
    shutil.rmtree(folder)
    return describe_speed(arguments.computed_precision, recipe.model.channels_last)


def compare_loops(name: str, options, work: Path) -> tuple[str, ...]:
    """Return precision and format, the speeds of both loops, and their ratios."""
    import torch
    from transformers import TrainerCallback

    model = MODELS[name](options.image_size)
    steps = options.warmup + options.steps

    class TakeTurns(TrainerCallback):
        """After each step of the Trainer, a step of the bare loop on a twin of its model."""

        def on_train_begin(self, args, state, control, **kwargs):
            self.bare = BareLoop(copy.deepcopy(model), options, args)
            self.seconds = {"train": [], "bare": []}
            self.began = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            wait(args.device)
            ended = time.perf_counter()
            self.seconds["train"].append(ended - self.began)
            self.bare.step()
            wait(args.device)
            self.began = time.perf_counter()
            self.seconds["bare"].append(self.began - ended)

    turns = TakeTurns()
    # Logging happens every 20 steps, as in a real run; the evaluation is in the other table.
    speed = run_ours(model, options, work, name, [turns], max_steps=steps,
                     eval_strategy="no", load_best_model_at_end=False,
                     dataloader_drop_last=True)  # as the bare loop has it  # fmt: skip
    train, bare = (turns.seconds[arm][options.warmup :] for arm in ("train", "bare"))
    torch.accelerator.empty_cache() if torch.accelerator.is_available() else None
    return (
        speed,
        f"{options.batch / statistics.median(bare):.1f}",
        f"{options.batch / statistics.median(train):.1f}",
        f"{statistics.median(bare) / statistics.median(train):.3f}",
        f"{sum(bare) / sum(train):.3f}",
    )


class BareLoop:
    """The minimum of training: forward, loss, backward, clip, update."""

    def __init__(self, model, options, args) -> None:
        import torch

        batch, size = options.batch, options.image_size
        self.model = model.to(args.device).train()
        self.precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
            args.computed_precision
        )
        conv = next((one for one in model.modules() if isinstance(one, torch.nn.Conv2d)), None)
        last = conv is not None and conv.weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        self.batches = [
            (
                torch.randn(batch, 3, size, size, device=args.device).to(memory_format=layout),
                torch.arange(batch, device=args.device) % 2,
            )
            for _ in range(4)
        ]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.count = 0

    def step(self) -> None:
        import torch

        pixels, classes = self.batches[self.count % len(self.batches)]
        self.count += 1
        enabled = self.precision is not None
        with torch.autocast(pixels.device.type, self.precision, enabled=enabled):
            logits = self.model(pixel_values=pixels).logits
        torch.nn.functional.cross_entropy(logits.float(), classes).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def compare_epochs(name: str, options, work: Path):
    """Yield a row for each round: an epoch of the example, then one of ours."""
    from transformers import TrainerCallback

    model = MODELS[name](options.image_size)

    class Time(TrainerCallback):
        """The seconds from the first step to the checkpoint after the evaluation."""

        def on_train_begin(self, args, state, control, **kwargs):
            self.began = time.perf_counter()

        def on_train_end(self, args, state, control, **kwargs):
            wait(args.device)
            self.seconds = time.perf_counter() - self.began

    run_ours(copy.deepcopy(model), options, work, name, max_steps=2)  # decodes and measures, once
    for _ in range(options.rounds):
        example, ours = Time(), Time()
        run_example(copy.deepcopy(model), options, work, example)
        speed = run_ours(copy.deepcopy(model), options, work, name, [ours], num_train_epochs=1)
        yield (
            speed,
            f"{example.seconds:.1f}",
            f"{ours.seconds:.1f}",
            f"{example.seconds / ours.seconds:.2f}",
        )


def run_example(model, options, work: Path, callback) -> None:
    """Train an epoch as transformers' examples/pytorch/image-classification."""
    _, data, _ = prepare(options)
    with silence():
        make_example(
            model,
            data["train"],
            options.image_size,
            work / "example",
            validation=data["validation"],
            callbacks=[callback],
            num_train_epochs=1,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=32,
            eval_strategy="epoch",
            save_strategy="epoch",
        ).train()
    shutil.rmtree(work / "example")


@contextmanager
def silence() -> Iterator[None]:
    """Keep the output of a run out of the tables."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


if __name__ == "__main__":
    run_script(main)
