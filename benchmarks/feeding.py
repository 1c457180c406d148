"""Measure how much of a training step's speed the data costs.

python benchmarks/feeding.py --data_dir DATA [--full_size DATA_OF_WHOLE_FILMS]

1. `train.py`'s own feeding (cache, batch, augmentation, normalisation) against the same step on
   batches that lie ready in memory, for a small ConvNeXt and a small ViT.
2. Against the way of transformers' example `run_image_classification`: the datasets library's
   imagefolder, Pillow transforms by `set_transform`, the Trainer's default arguments; for
   EfficientNet-B0, 4 M parameters, in our recipe's precision and memory format.

The arms take turns, a step each, in one process, so that what else the machine does hits all
alike; speeds and ratios are of the medians, but for the last column, which is of the totals.
Weights are drawn at random: speed does not depend on them. Prints tables in Markdown.
"""

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pneumonia_hf.console import make_parser, run_script

BATCH = 16
SIZE = 224


def main() -> None:
    """Measure both, and print a table of each."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="Class folders of X-rays.")
    parser.add_argument("--full_size", type=Path, help="Class folders of X-rays of full size.")
    parser.add_argument("--steps", type=int, default=40, help="Of each arm, after 5 to warm up.")
    options = parser.parse_args()
    logging.getLogger("pneumonia_hf").setLevel(logging.ERROR)
    print(f"{describe_machine()}; batch {BATCH}, {SIZE} pixels, {options.steps} steps an arm.\n")
    print("| model | precision | from memory, images/s | fed, images/s | ratio | of totals |")
    print("|---|---|---|---|---|---|")
    for name, make_model in {"ConvNeXt V2 atto": make_convnext, "ViT tiny": make_vit}.items():
        precision, times = compare_with_memory(make_model, options.data_dir, options.steps)
        memory, fed = (BATCH / statistics.median(times[arm]) for arm in ("memory", "fed"))
        total = sum(times["memory"]) / sum(times["fed"])
        row = f"{name} | {precision} | {memory:.1f} | {fed:.1f} | {fed / memory:.3f} | {total:.3f}"
        print(f"| {row} |", flush=True)
    print("\n| pictures | arm | images/s | ratio to the example's way | of totals |")
    print("|---|---|---|---|---|")
    for folder in filter(None, (options.data_dir, options.full_size)):
        times = compare_with_example(folder, options.steps)
        base = BATCH / statistics.median(times["the example's way"])
        for arm, seconds in times.items():
            speed = BATCH / statistics.median(seconds)
            total = sum(times["the example's way"]) / sum(seconds)
            row = f"{folder.name} | {arm} | {speed:.1f} | {speed / base:.2f} | {total:.2f}"
            print(f"| {row} |", flush=True)


def describe_machine() -> str:
    """Return what the numbers were taken on."""
    import torch

    from pneumonia_hf.finishing import describe_hardware

    return f"{describe_hardware()}, torch {torch.__version__}"


def make_convnext():
    """Return ConvNeXt V2 in its 'atto' size: 3.4 M parameters."""
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    config = ConvNextV2Config(hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], num_labels=2)
    return ConvNextV2ForImageClassification(config)


def make_vit():
    """Return ViT in its 'tiny' size: 5.5 M parameters."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        num_labels=2,
    )
    return ViTForImageClassification(config)


def make_efficientnet():
    """Return EfficientNet-B0: 4.0 M parameters."""
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    config = TimmWrapperConfig(
        architecture="efficientnet_b0", num_labels=2, id2label={0: "NORMAL", 1: "PNEUMONIA"}
    )
    return AutoModelForImageClassification.from_config(config)


def make_trainer(model, folder: Path, channels_last: bool = False, **changes):
    """Return our trainer on the pictures of a folder, as `train` makes it."""
    import torch

    from pneumonia_hf.backbones import ModelConfig
    from pneumonia_hf.cache import decode
    from pneumonia_hf.data import DataConfig, load_parts
    from pneumonia_hf.finishing import Recipe
    from pneumonia_hf.preprocess import make_processor
    from pneumonia_hf.training import (
        ClassWeightedLoss,
        XrayTrainer,
        XrayTrainingArguments,
        _take_batch,
    )

    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    processor = make_processor(SIZE, (0.5,) * 3, (0.5,) * 3)
    part = decode(load_parts(folder)["all"], processor).part
    arguments = XrayTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        report_to=["none"],
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        **changes,
    )
    return XrayTrainer(
        model=model,
        args=arguments,
        processing_class=processor,
        train_dataset=part,
        data_collator=_take_batch,
        recipe=Recipe(DataConfig([str(folder)]), ModelConfig(channels_last=channels_last)),
        compute_loss_func=ClassWeightedLoss(part.labels, arguments),
    )


def compare_with_memory(make_model: Callable, folder: Path, steps: int) -> tuple[str, dict]:
    """Return the precision, and the seconds of each step, fed and from ready batches."""
    trainer = make_trainer(make_model(), folder)
    batches = endless(trainer.get_train_dataloader)
    trainer.model.train()
    ready = [dict(trainer._prepare_inputs(next(batches))) for _ in range(8)]
    feed = trainer._prepare_inputs
    step = make_step(trainer)

    def from_memory(number: int) -> None:
        trainer._prepare_inputs = lambda inputs: inputs
        step(dict(ready[number % len(ready)]))  # the loss takes its labels out

    def fed(_: int) -> None:
        trainer._prepare_inputs = feed
        step(next(batches))

    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32"
    return precision, take_turns({"memory": from_memory, "fed": fed}, steps)


def compare_with_example(folder: Path, steps: int) -> dict[str, list[float]]:
    """Return the seconds of each step of the example's way, and of ours in two formats."""
    arms = {}
    example = make_example(make_efficientnet(), folder)
    arms["the example's way"] = (example, endless(example.get_train_dataloader))
    for name, changes in {
        "ours, fp32": {"precision": "fp32"},
        "ours, channels_last (the recipe)": {"precision": "fp32", "channels_last": True},
        "ours, channels_last, --torch_compile": {
            "precision": "fp32",
            "channels_last": True,
            "torch_compile": True,
        },
    }.items():
        trainer = make_trainer(make_efficientnet(), folder, **changes)
        arms[name] = (trainer, endless(trainer.get_train_dataloader))

    def make_arm(trainer, batches) -> Callable[[int], None]:
        trainer.model.train()
        step = make_step(trainer)
        return lambda _: step(next(batches))

    return take_turns({name: make_arm(*arm) for name, arm in arms.items()}, steps)


def make_example(model, folder: Path):
    """Return a Trainer fed as transformers' examples/pytorch/image-classification does it."""
    import torch
    from datasets import load_dataset
    from torchvision.transforms import (
        Compose,
        Normalize,
        RandomHorizontalFlip,
        RandomResizedCrop,
        ToTensor,
    )
    from transformers import Trainer, TrainingArguments

    data = load_dataset("imagefolder", data_dir=str(folder), split="train")
    change = Compose(
        [RandomResizedCrop(SIZE), RandomHorizontalFlip(), ToTensor(), Normalize([0.5], [0.5])]
    )

    def transform(rows: dict) -> dict:
        rows["pixel_values"] = [change(image.convert("RGB")) for image in rows["image"]]
        return rows

    data.set_transform(transform)

    def collate(rows: list[dict]) -> dict:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        use_cpu=not (torch.accelerator.is_available()),
        remove_unused_columns=False,
        report_to=["none"],
    )
    return Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)


def endless(make_loader: Callable) -> Iterator[dict]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from make_loader()


def make_step(trainer) -> Callable[[dict], None]:
    """Return a whole training step of a trainer: forward, backward, clip, update."""
    import torch

    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # which Trainer.train would set
    trainer.model.to(trainer.args.device)
    model = trainer.model
    if trainer.args.torch_compile:
        model = torch.compile(model)  # as accelerate does it in Trainer.train
    parameters = [one for one in trainer.model.parameters() if one.requires_grad]

    def step(batch: dict) -> None:
        trainer.training_step(model, batch)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    return step


def take_turns(arms: dict[str, Callable[[int], None]], steps: int) -> dict[str, list[float]]:
    """Run the arms step by step in turn, and return the seconds of each step."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(steps + 5):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm(number)
            if number >= 5:
                times[name].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    run_script(main)
