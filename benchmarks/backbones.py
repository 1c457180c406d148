"""Measure the size and speed of every backbone, at the image size of its recipe.

python benchmarks/backbones.py [--backbones NAME ...] [--batch 16] [--steps 10]

Real architectures, randomly initialised: speed does not depend on the weights. The arms take
turns, a batch each, in one process, so that other load affects all of them; speeds are of the
medians. A training step is forward, backward and AdamW on all parameters, on images in memory, in
the fastest precision of the machine. Prints a table in Markdown.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from pneumonia_hf.cli import make_parser, run_script

CONFIGS = Path(__file__).resolve().parents[1] / "train_scripts" / "configs"
WARM_UP = 2  # rounds that are not counted


def main() -> None:
    """Measure the chosen backbones, and print a table with a row for each."""
    from pneumonia_hf.errors import UserError
    from pneumonia_hf.models.backbones import BACKBONES, fast_precision
    from pneumonia_hf.reporting.page import markdown_table
    from pneumonia_hf.training.provenance import describe_hardware

    known = sorted(set(BACKBONES) - {"timm"})  # which has no size of its own
    parser = make_parser(__doc__)
    parser.add_argument("--backbones", nargs="+", default=known, help="Default: all.")
    parser.add_argument("--batch", type=int, default=16, help="Images a batch.")
    parser.add_argument("--steps", type=int, default=10, help="Counted batches of each arm.")
    parser.add_argument("--channels_last", action="store_true", help="Memory as [N, H, W, C].")
    options = parser.parse_args()
    strange = sorted(set(options.backbones) - set(known))
    if strange:
        raise UserError(f"Unknown backbone {strange[0]!r}; choose from {known}.")

    arms = {
        name: make_arm(name, options.batch, options.channels_last) for name in options.backbones
    }
    times: dict[str, dict[str, list[float]]] = {
        name: {"inference": [], "training": []} for name in arms
    }
    for turn in range(WARM_UP + options.steps):
        for name, arm in arms.items():
            for what, step in arm["steps"].items():
                seconds = take_time(step)
                if turn >= WARM_UP:
                    times[name][what].append(seconds)
    layout = ", channels last" if options.channels_last else ""
    print(
        f"{describe_hardware()}, training in {fast_precision()}, inference in fp32{layout}; "
        f"batch {options.batch}, {options.steps} batches an arm.\n"
    )
    header = [
        "backbone",
        "pixels",
        "parameters, M",
        "weights, MB",
        "inference, images/s",
        "training",
    ]
    rows = []
    for name, arm in arms.items():
        speeds = [options.batch / statistics.median(times[name][what]) for what in arm["steps"]]
        sizes = [arm["pixels"], f"{arm['parameters'] / 1e6:.1f}", f"{arm['bytes'] / 1e6:.0f}"]
        rows.append([name, *sizes, *(f"{speed:.1f}" for speed in speeds)])
    print(markdown_table(header, rows))


def make_arm(name: str, batch: int, channels_last: bool) -> dict:
    """Return a backbone's sizes, and its `steps`: functions that process one batch."""
    import torch
    import yaml

    from pneumonia_hf.models.backbones import fast_precision
    from pneumonia_hf.models.build import NO_WEIGHTS, ModelConfig, build_model

    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model, processor = build_model(
        ModelConfig(name, NO_WEIGHTS, recipe.get("image_size"), channels_last=channels_last)
    )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = model.to(device)
    size = processor.size["height"]
    pixel_values = torch.randn(batch, 3, size, size, device=device)
    if channels_last:
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(fast_precision())

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            model(pixel_values=pixel_values)

    def train() -> None:
        model.train()
        with torch.autocast(torch.device(device).type, half, enabled=half is not None):
            loss = model(pixel_values=pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "pixels": size,
        "parameters": model.num_parameters(),
        "bytes": sum(value.nbytes for value in model.state_dict().values()),
        "steps": {"inference": infer, "training": train},
    }


def take_time(step: Callable[[], None]) -> float:
    """Return the seconds of a step, including the work on the accelerator."""
    import torch

    started = time.monotonic()
    step()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.monotonic() - started


if __name__ == "__main__":
    run_script(main)
