"""Measure what it saves on a CPU that a process keeps the memory that it frees.

python benchmarks/memory.py [--backbones efficientnet-lite0 xray-cnn dinov2-small] [--steps 4]

Each backbone in its published size, randomly initialised, in the memory format of its family.
Processes that keep their memory (`keep_freed_memory`, as all scripts do) and processes that do
not take turns.
"""

import json
import statistics
import subprocess
import sys

from _shared import describe_machine

from pneumonia_hf.cli import make_parser, run_script

# A process prints its images per second, and its peak memory in MB.
PROGRAM = """
import json, resource, sys, time
import torch
from pneumonia_hf.memory import keep_freed_memory
from pneumonia_hf.models.backbones import BACKBONES
from pneumonia_hf.models.build import NO_WEIGHTS, ModelConfig, build_model

name, keeps, steps, batch, size = json.loads(sys.argv[1])
if keeps:
    assert keep_freed_memory(), "this C library cannot"
last = BACKBONES[name].channels_last
layout = torch.channels_last if last else torch.contiguous_format
model = build_model(ModelConfig(name, NO_WEIGHTS, image_size=size))[0].to(memory_format=layout)
pixels = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
labels = torch.arange(batch) % 2

def step(train):
    started = time.perf_counter()
    with torch.set_grad_enabled(train):
        logits = model(pixel_values=pixels).logits
    if train:
        torch.nn.functional.cross_entropy(logits, labels).backward()
        model.zero_grad()
    return time.perf_counter() - started

speeds = []
for train in (True, False):
    model.train(train)
    times = [step(train) for _ in range(steps + 1)][1:]
    speeds.append(batch / min(times))
print(json.dumps([*speeds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def main() -> None:
    """Measure each backbone and print one table."""
    from pneumonia_hf.models.backbones import BACKBONES

    names = [name for name in BACKBONES if name != "timm"]
    defaults = ["efficientnet-lite0", "xray-cnn", "dinov2-small"]
    parser = make_parser(__doc__)
    parser.add_argument("--backbones", nargs="+", choices=names, default=defaults)
    parser.add_argument("--steps", type=int, default=4, help="In each process, after one more.")
    parser.add_argument("--rounds", type=int, default=3, help="Pairs of processes.")
    parser.add_argument("--batch", type=int, default=32, help="Images per step.")
    parser.add_argument("--image_size", type=int, default=224, help="Pixels a side.")
    options = parser.parse_args()
    print(f"{describe_machine()}; batch {options.batch}, {options.image_size} pixels.\n")
    print("| backbone | step | returns it, images/s | keeps it, images/s | ratio | peak, MB |")
    print("|---|---|---|---|---|---|")
    for name in options.backbones:
        found = {False: [], True: []}
        for _ in range(options.rounds):
            for keeps in found:
                settings = [name, keeps, options.steps, options.batch, options.image_size]
                command = [sys.executable, "-c", PROGRAM, json.dumps(settings)]
                run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[keeps].append(json.loads(run.stdout))
        without, kept = (list(map(statistics.median, zip(*found[k], strict=True))) for k in found)
        for number, step in enumerate(("training", "scoring")):
            ratio = kept[number] / without[number]
            cells = f"{without[number]:.1f} | {kept[number]:.1f} | {ratio:.2f}"
            print(f"| {name} | {step} | {cells} | {without[2]:.0f}, {kept[2]:.0f} |", flush=True)


if __name__ == "__main__":
    run_script(main)
