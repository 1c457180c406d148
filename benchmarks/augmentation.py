"""Measure what the operations of augmentation cost, as a share of a training step.

python benchmarks/augmentation.py [--backbones efficientnet-lite0 ...] [--steps 6]

Each operation at its default strength, on a batch of drawn noise, in turns with a step of each
network (augmentation excluded). The last rows are all operations, and those that take the
shortcuts away: crop, frame and marker.
"""

import time

from _shared import describe_machine, wait

from pneumonia_hf.cli import make_parser, run_script

SHORTCUTS = ("crop", "frame", "marker")


def main() -> None:
    """Measure the operations and the networks in turns, and print one table."""
    import torch

    from pneumonia_hf.models.backbones import BACKBONES
    from pneumonia_hf.models.build import NO_WEIGHTS, ModelConfig, build_model
    from pneumonia_hf.training.augment import AUGMENTATIONS, _apply
    from pneumonia_hf.training.recipe import AugmentConfig

    names = [name for name, one in BACKBONES.items() if name != "timm"]
    parser = make_parser(__doc__)
    parser.add_argument(
        "--backbones", nargs="+", choices=names, default=["efficientnet-lite0", "xray-cnn"]
    )
    parser.add_argument("--steps", type=int, default=6, help="Of each, after one of warm-up.")
    parser.add_argument("--batch", type=int, default=16, help="Images per step.")
    parser.add_argument("--image_size", type=int, default=224)
    options = parser.parse_args()
    able = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if able else torch.device("cpu")
    side = options.image_size
    gray = torch.randint(0, 256, (options.batch, 1, side, side), dtype=torch.uint8, device=device)
    strengths = AugmentConfig().strengths()
    sets = {name: {name: strengths[name]} for name in AUGMENTATIONS if name in strengths}
    sets |= {"all": strengths, "+".join(SHORTCUTS): {one: strengths[one] for one in SHORTCUTS}}
    tasks = {name: lambda chosen=chosen: _apply(gray, chosen) for name, chosen in sets.items()}
    for name in options.backbones:
        model = build_model(ModelConfig(name, NO_WEIGHTS, side))[0].to(device).train()
        if BACKBONES[name].channels_last:
            model.to(memory_format=torch.channels_last)
        tasks[name] = make_step(model, gray)
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(options.steps + 1):
        for name, task in tasks.items():
            wait(device)
            started = time.perf_counter()
            task()
            wait(device)
            seconds[name].append(time.perf_counter() - started)
    # Means: each operation draws other images each time.
    means = {name: sum(times[1:]) / options.steps for name, times in seconds.items()}
    print(
        f"{describe_machine()}; batch {options.batch}, {side} pixels, {options.steps} steps each."
    )
    print(
        f"\n| operation | ms a batch | {' | '.join(f'of a {n} step' for n in options.backbones)} |"
    )
    print(f"|---|---|{'---|' * len(options.backbones)}")
    for name in sets:
        shares = [f"{means[name] / means[one]:.3f}" for one in options.backbones]
        print(f"| {name} | {means[name] * 1000:.2f} | {' | '.join(shares)} |")


def make_step(model, gray):
    """Return a function that takes a training step without an optimizer."""
    import torch

    pixels = gray.float().expand(-1, 3, -1, -1) / 255
    labels = torch.arange(len(gray), device=gray.device) % 2

    def step() -> None:
        logits = model(pixel_values=pixels).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        model.zero_grad()

    return step


if __name__ == "__main__":
    run_script(main)
