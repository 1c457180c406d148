"""Which precision and memory format this machine trains a model quickest in, by measurement."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pneumonia_hf.data.pixel_store import cache_folder
from pneumonia_hf.files import read_json, write_json
from pneumonia_hf.models.backbones import fast_precision, freeze
from pneumonia_hf.training.distributed import is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.phases import Phase

SPEEDS_FOLDER = "speeds"  # in the cache folder: what was measured, so that it stays the same
ROUNDS = range(3, 20)  # steps of each way: at least, at most; the first is not counted
ENOUGH = 2.0  # seconds of each way, after which the least number of rounds will do
BUDGET = 40.0  # seconds of all ways, after which two rounds will do
MARGIN = 1.1  # so much quicker a way must be than the plain one: noise shall not choose
MANY_CONVOLUTIONS = 4  # a transformer has one, for its patches: the memory format hardly matters
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Speed:
    """In which precision and memory format a run computes, and why."""

    precision: str  # fp32, bf16 or fp16
    channels_last: bool
    # Images a second of each way that was tried, as `bf16 channels_last`; empty if none was.
    images_per_second: dict[str, float] = field(default_factory=dict)


def choose_speed(
    model: PreTrainedModel,
    image_size: int,
    channels_last: bool | None,
    phase: Phase,
    arguments: XrayTrainingArguments,
    cache_dir: str | Path | None = None,
) -> Speed:
    """Return the quickest way to train `model`, among those that are left open.

    A few steps of each on images of noise, in turn; another way than fp32 in torch's own format
    must be a tenth quicker. What was measured is kept in the cache folder for this machine, model
    and batch, so that a later run of the same recipe computes the same bits.

    Args:
        model: as it will be trained; it is not touched.
        image_size: pixels a side.
        channels_last: the memory format, or None to measure.
        phase: whose part of the network learns.
        arguments: `precision` may be auto, to measure.
        cache_dir: of the data's cache.
    """
    device = arguments.device.type
    precisions = [arguments.precision]
    if arguments.precision == "auto":
        precisions = list(dict.fromkeys(["fp32", fast_precision(device)]))
    if is_sharded():  # the model may not fit on one device: nothing can be tried there
        return Speed(precisions[-1], bool(channels_last))
    formats = [bool(channels_last)]
    if channels_last is None and _count_convolutions(model) >= MANY_CONVOLUTIONS:
        formats = [False, True]
    ways = list(product(precisions, formats))
    if len(ways) == 1:
        return Speed(*ways[0])
    task = _describe_task(model, image_size, phase, arguments, ways)
    path = cache_folder(cache_dir) / SPEEDS_FOLDER / f"{task}.json"
    speeds = read_json(path, otherwise=None)
    if speeds is None:
        speeds = _measure(model, image_size, phase, arguments, ways)
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another run has just measured the same
            write_json(path, speeds)
    plain = name_way(*ways[0])
    best = max(ways, key=lambda way: speeds[name_way(*way)])
    if speeds[name_way(*best)] < MARGIN * speeds[plain]:
        best = ways[0]
    return Speed(*best, speeds)


def name_way(precision: str, channels_last: bool) -> str:
    """Return how a way is called in the manifest."""
    return f"{precision} channels_last" if channels_last else precision


def _measure(
    model: PreTrainedModel,
    image_size: int,
    phase: Phase,
    arguments: XrayTrainingArguments,
    ways: list[tuple[str, bool]],
) -> dict[str, float]:
    batch = arguments.per_device_train_batch_size
    device = arguments.device
    state = torch.random.get_rng_state()
    try:
        trial = copy.deepcopy(model).to(device).train()
        freeze(trial, phase.trainable_layer_groups)
        if arguments.activation_checkpointing and trial.supports_gradient_checkpointing:
            trial.activation_checkpointing_enable()
        pixels = torch.rand(batch, 3, image_size, image_size, device=device)
        labels = torch.arange(batch, device=device) % 2
        seconds: dict[tuple, list[float]] = {way: [] for way in ways}
        started = time.monotonic()
        for turn in range(1, ROUNDS.stop + 1):
            for way in ways:
                try:
                    seconds[way].append(_time_step(trial, pixels, labels, *way))
                except torch.OutOfMemoryError:
                    trial.zero_grad()
                    seconds[way].append(math.inf)  # a way that does not fit is no way
            spent = time.monotonic() - started
            if turn >= ROUNDS.start and spent > ENOUGH * len(ways):
                break
            if turn >= 2 and spent > BUDGET:
                break
    finally:
        torch.random.set_rng_state(state)
    return {
        # The quickest step, since what else the machine does can only slow it.
        name_way(*way): round(batch / min(times[1:]), 2)
        for way, times in seconds.items()
    }


def _time_step(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    precision: str,
    channels_last: bool,
) -> float:
    """Return the seconds of a step, forward and backward."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    pixels = pixels.contiguous(memory_format=layout)
    _wait(pixels.device)
    started = time.perf_counter()
    with torch.autocast(
        pixels.device.type, DTYPES[precision], enabled=precision != "fp32", cache_enabled=True
    ):
        logits = model(pixel_values=pixels).logits
    nn.functional.cross_entropy(logits.float(), labels).backward()
    model.zero_grad()
    _wait(pixels.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _count_convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


def _describe_task(model, image_size: int, phase: Phase, arguments, ways: list) -> str:
    """Return the key of a measurement: whatever may change which way is quickest."""
    shapes = [(name, tuple(value.shape)) for name, value in model.named_parameters()]
    task = {
        "machine": _describe_machine(arguments.device),
        "model": hashlib.sha256(repr(shapes).encode()).hexdigest(),
        "image_size": image_size,
        "batch": arguments.per_device_train_batch_size,
        "learns": phase.trainable_layer_groups,
        "checkpointing": bool(arguments.activation_checkpointing),
        "ways": [name_way(*way) for way in ways],
    }
    return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:24]


def _describe_machine(device: torch.device) -> list:
    threads = torch.get_num_threads()
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.__version__]
    return [torch.backends.cpu.get_cpu_capability(), _cpu_model(), threads, torch.__version__]


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        import platform

        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith("model name")), "")
