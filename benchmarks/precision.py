"""Measure whether the rule for precision and memory format selects the fastest way to train.

python benchmarks/precision.py [--backbones resnet50 ...] [--steps 4]

Each backbone in its published size, randomly initialised: speed does not depend on the weights.
The ways (fp32 or bf16, with or without channels_last) take turns, one training step each. The
rule is bf16 where the hardware computes it, and channels_last by family, as in BACKBONES.
"""

import time

from _shared import describe_machine, wait

from pneumonia_hf.cli import make_parser, run_script


def main() -> None:
    """Measure each backbone and print one table."""
    from pneumonia_hf.models.backbones import BACKBONES

    names = [name for name, one in BACKBONES.items() if name != "timm"]
    parser = make_parser(__doc__)
    parser.add_argument("--backbones", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=4, help="Of each way, after one of warm-up.")
    parser.add_argument("--batch", type=int, default=8, help="Images per step.")
    options = parser.parse_args()
    print(f"{describe_machine()}; batch {options.batch}, 224 pixels, {options.steps} steps a way.")
    print("\n| backbone | fastest | the rule | ratio of their speeds | all ways, images/s |")
    print("|---|---|---|---|---|")
    for name in options.backbones:
        print(f"| {name} | {' | '.join(measure(name, options))} |", flush=True)


def measure(name: str, options) -> tuple[str, ...]:
    """Return the row of one backbone."""
    import torch

    from pneumonia_hf.models.backbones import BACKBONES, fast_precision
    from pneumonia_hf.models.build import NO_WEIGHTS, ModelConfig, build_model

    able = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if able else torch.device("cpu")
    precision = fast_precision(device.type)
    precisions = list(dict.fromkeys(["fp32", precision]))
    model = build_model(ModelConfig(name, NO_WEIGHTS))[0].to(device).train()
    pixels = torch.randn(options.batch, 3, 224, 224, device=device)
    labels = torch.arange(options.batch, device=device) % 2
    seconds: dict[tuple[str, bool], list[float]] = {
        (kind, last): [] for kind in precisions for last in (False, True)
    }
    for _ in range(options.steps + 1):
        for (kind, last), times in seconds.items():
            layout = torch.channels_last if last else torch.contiguous_format
            model.to(memory_format=layout)
            batch = pixels.contiguous(memory_format=layout)
            wait(device)
            started = time.perf_counter()
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = model(pixel_values=batch).logits
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            model.zero_grad()
            wait(device)
            times.append(time.perf_counter() - started)
    # The fastest step of each way: whatever else the machine does can only slow a step.
    speeds = {way: options.batch / min(times[1:]) for way, times in seconds.items()}
    fastest = max(speeds, key=speeds.get)
    rule = (precision, BACKBONES[name].channels_last)
    return (
        describe(*fastest),
        describe(*rule),
        f"{speeds[rule] / speeds[fastest]:.2f}",
        ", ".join(f"{describe(*way)} {speed:.1f}" for way, speed in speeds.items()),
    )


def describe(precision: str, channels_last: bool) -> str:
    """Return a way in words."""
    return f"{precision}, channels_last" if channels_last else precision


if __name__ == "__main__":
    run_script(main)
