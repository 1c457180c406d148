"""Measure how memory and time grow with the number of images.

python benchmarks/scale.py --data_dir DATA --work_dir FOLDER --counts 5000 20000 100000

The images are variants of those in DATA: rotated, cropped, shaded, with a patch of random pixels,
so that no two are copies. Loading, auditing and a training run of one epoch each run in a separate
process; the system reports its peak resident memory. The folder takes 8 GB for 100,000 images of
224 pixels, and a second call reuses it. Prints a table in Markdown.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from pneumonia_hf.cli import make_parser, run_script
from pneumonia_hf.reporting.page import markdown_table

ROOT = Path(__file__).resolve().parents[1]

WORK = {
    "load": "load_xrays(DataConfig([data]))",
    "audit": 'audit_sources([data], FeatureConfig("pixels"), cache)',
    "train": """
set_seed(0)
config = ConvNextV2Config(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_labels=2,
                          id2label={0: "NORMAL", 1: "PNEUMONIA"})
model = ConvNextV2ForImageClassification(config)
recipe = Recipe(DataConfig([data], cache_dir=cache), ModelConfig("convnextv2-tiny"))
arguments = XrayTrainingArguments(output_dir=output, num_train_epochs=1, learning_rate=1e-3,
    per_device_train_batch_size=64, report_to=["none"], precision="fp32", overwrite=True)
train(model, make_processor(int(size), (0.5,) * 3, (0.5,) * 3), load_xrays(recipe.data), recipe,
      arguments)
""",
}
# All steps import the same modules, so that only the number of images differs.
CHILD = """
import json, resource, sys, time
from transformers import ConvNextV2Config, ConvNextV2ForImageClassification, set_seed
from pneumonia_hf.audit.label_errors import FeatureConfig
from pneumonia_hf.audit.run import audit_sources
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.data.load import DataConfig, load_xrays
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.train import train
data, cache, output, size = sys.argv[1:]
started = time.monotonic()
{work}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"seconds": time.monotonic() - started, "kilobytes": peak}}))
"""


def main() -> None:
    """Make the images, measure, and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="Real X-rays to vary.")
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the variants.")
    parser.add_argument("--counts", type=int, nargs="+", default=[5000, 20000, 100000])
    parser.add_argument("--steps", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--image_size", type=int, default=224, help="Pixels a side, in training.")
    options = parser.parse_args()
    rows = []
    for count in sorted(options.counts):
        folder = options.work_dir / f"{count}"
        make_images(options.data_dir, folder, count)
        for step in options.steps:
            measured = measure(step, folder, options)
            rows.append((step, count, measured))
            print(f"{step} {count}: {measured}", file=sys.stderr, flush=True)
    print_table(rows)


def make_images(source: Path, folder: Path, count: int) -> None:
    """Write `count` images in class folders, each a variant of a real one."""
    done = folder / "done"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    files = sorted(path for path in source.rglob("*") if path.suffix in {".jpeg", ".jpg", ".png"})
    tasks = []
    for number in range(count):
        path = files[number % len(files)]
        patient = number // 3
        normal = path.parent.name == "NORMAL"
        name = f"IM-{patient:06}-{number:06}" if normal else f"person{patient}_virus_{number}"
        tasks.append((path, folder / "data" / path.parent.name / f"{name}.jpeg", number))
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / "data" / label).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(copy_changed, tasks, chunksize=500))
    done.touch()


def copy_changed(task: tuple[Path, Path, int]) -> None:
    """Rotate, crop and shade an X-ray, and replace a patch by random pixels."""
    import numpy as np
    from PIL import Image

    source, target, seed = task
    generator = np.random.default_rng(seed)
    xray = Image.open(source).convert("L")
    width, height = xray.size
    xray = xray.rotate(generator.uniform(-15, 15), Image.Resampling.BILINEAR)
    left, upper = generator.uniform(0, 0.2, 2)
    xray = xray.resize(
        (width, height),
        box=(left * width, upper * height, (left + 0.8) * width, (upper + 0.8) * height),
    )
    shade = Image.fromarray(generator.uniform(0.6, 1.4, (5, 5)).astype(np.float32))
    shade = np.asarray(shade.resize((width, height), Image.Resampling.BILINEAR))
    pixels = (np.asarray(xray) * shade).clip(0, 255).astype(np.uint8)
    y, x = generator.integers(0, np.array(pixels.shape) - 12)
    pixels[y : y + 12, x : x + 12] = generator.integers(0, 256, (12, 12))
    Image.fromarray(pixels).save(target, quality=80)


def measure(step: str, folder: Path, options) -> dict[str, float]:
    """Run one step in a separate process and return its seconds and peak memory."""
    # One cache for each count, as a user has: the audit fills it, training reads it.
    cache, output = (options.work_dir / f"{kind}-{folder.name}" for kind in ("cache", "run"))
    if step == "audit":
        shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-c", CHILD.format(work=WORK[step])]
    started = time.monotonic()
    done = subprocess.run(
        [*command, str(folder / "data"), str(cache), str(output), str(options.image_size)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    return measured | {"with_imports": round(time.monotonic() - started, 1)}


def print_table(rows: list[tuple[str, int, dict[str, float]]]) -> None:
    """Print peak memory, its growth an image from the smallest count, and the time an image."""
    header = [
        "step",
        "images",
        "peak memory, MB",
        "growth, bytes an image",
        "seconds",
        "ms an image",
    ]
    table = []
    first: dict[str, tuple[int, dict[str, float]]] = {}
    for step, count, measured in sorted(rows, key=lambda row: (list(WORK).index(row[0]), row[1])):
        least, base = first.setdefault(step, (count, measured))
        grown = (measured["kilobytes"] - base["kilobytes"]) * 1024
        growth = "" if count == least else f"{grown / (count - least):.0f}"
        seconds = [f"{measured['seconds']:.0f}", f"{1000 * measured['seconds'] / count:.2f}"]
        table.append([step, f"{count:,}", f"{measured['kilobytes'] / 1024:.0f}", growth, *seconds])
    print(markdown_table(header, table))


if __name__ == "__main__":
    run_script(main)
