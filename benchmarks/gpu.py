"""Measure training on one accelerator: images a second, and the share of its peak.

python benchmarks/gpu.py [--models vit-base convnext-tiny] [--batch 256] [--steps 50]

ViT-B/16 and ConvNeXt tiny at 224 pixels in bf16, compiled, with the images on the device as 8-bit
gray; each step samples a batch, augments and normalises it as in training (`--bare` leaves that
out), and updates all weights with AdamW. torch's FlopCounterMode counts the operations of a step,
multiplications and additions separately; the peak is the maker's dense bf16 figure. Prints a table
in Markdown. It also runs on a CPU, as a test.
"""

import statistics
import time

from _shared import wait

from pneumonia_hf.cli import make_parser, run_script

IMAGES = 2048  # on the device: 100 MB
# Dense bf16 operations a second, from NVIDIA's data sheets; the first matching name counts.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "T4": 65e12,  # fp16; it has no bf16
}


def main() -> None:
    """Measure each model, and print one table."""
    import torch

    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50, help="After 10 for warm-up.")
    parser.add_argument("--image_size", type=int, default=224, help="Pixels a side.")
    parser.add_argument("--bare", action="store_true", help="Without augmentation.")
    parser.add_argument("--eager", action="store_true", help="Without torch.compile.")
    options = parser.parse_args()
    able = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if able else torch.device("cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    peak = next((peak for key, peak in PEAKS.items() if key in name), None)
    batch = f"batch {options.batch}, {options.image_size} pixels, bf16"
    print(f"{name}, torch {torch.__version__}, {batch}.\n")
    print("| model | images/s | 10% to 90% of steps | TFLOP/s | share of peak | memory, GB |")
    print("|---|---|---|---|---|---|")
    for model in options.models:
        print(f"| {model} | {' | '.join(measure(model, options, device, peak))} |", flush=True)


def make_vit(size: int):
    """Return ViT-B/16: 86 M parameters."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(num_labels=2, image_size=size, attn_implementation="sdpa")
    return ViTForImageClassification(config)


def make_convnext(size: int):
    """Return ConvNeXt tiny: 28 M parameters."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(ConvNextConfig(num_labels=2, image_size=size))


MODELS = {"vit-base": make_vit, "convnext-tiny": make_convnext}


def measure(name: str, options, device, peak: float | None) -> tuple[str, ...]:
    """Return a row: speed, its range, operations a second, share of the peak, memory."""
    import torch

    from pneumonia_hf.imaging.preprocess import make_processor, normalise
    from pneumonia_hf.training.augment import AugmentConfig, augment

    size = options.image_size
    torch.manual_seed(13)
    torch.set_float32_matmul_precision("high")  # of what autocast leaves in fp32
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if name == "convnext-tiny" else torch.contiguous_format
    model = MODELS[name](size).to(device, memory_format=layout).train()
    processor = make_processor(size, (0.5,) * 3, (0.5,) * 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randint(0, 256, (IMAGES, 1, size, size), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 2, (IMAGES,), device=device)
    forward = model if options.eager else torch.compile(model)

    def step(network) -> None:
        rows = torch.randint(0, IMAGES, (options.batch,), device=device)
        pixels = images[rows]
        if not options.bare:
            pixels = augment(pixels, AugmentConfig())
        pixel_values = normalise(pixels, processor).contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(pixel_values=pixel_values).logits
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    operations = count_operations(model, size, device)
    for _ in range(min(10, options.steps)):
        step(forward)
    seconds = []
    for _ in range(options.steps):
        wait(device)
        began = time.perf_counter()
        step(forward)
        wait(device)
        seconds.append(time.perf_counter() - began)
    speeds = sorted(options.batch / one for one in seconds)
    speed = statistics.median(speeds)
    low, high = speeds[len(speeds) // 10], speeds[-1 - len(speeds) // 10]
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return (
        f"{speed:.4g}",
        f"{low:.4g} to {high:.4g}",
        f"{speed * operations / 1e12:.3g}",
        f"{speed * operations / peak:.1%}" if peak else "peak not known",
        f"{memory:.1f}" if memory else "",
    )


def count_operations(model, size: int, device) -> float:
    """Return the operations of a training step for one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    pixels = torch.zeros(2, 3, size, size, device=device)
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=pixels).logits.sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 2


if __name__ == "__main__":
    run_script(main)
