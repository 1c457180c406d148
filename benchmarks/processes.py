"""Measure how much faster two processes score than one, and the memory that many images take.

python benchmarks/processes.py --data_dir DATA [--images 400] [--counts 5000 20000 100000]

One process, and two that `accelerate launch` starts, take turns, each with one thread. They write
Parquet parts as predict.py does. Whole commands are measured, and the scoring alone: from the
moment when all processes are ready until the table is there. The CPU time of the busiest process
says what an idle machine would need. The fastest round counts.

With --counts, links to the files of DATA are scored by a very small network, in a process for each
count, whose peak memory is printed.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _shared import describe_machine

from pneumonia_hf.cli import make_parser, run_script

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ["-m", "accelerate.commands.launch", "--quiet", "--config_file",
            str(ROOT / "train_scripts/accelerate/two_cpu_processes.yaml")]  # fmt: skip
# Each process prints its number, seconds, seconds of the CPU, and peak memory in MB.
PROGRAM = """
import json, os, resource, sys, time
from pathlib import Path

os.environ["LOKY_MAX_CPU_COUNT"] = "1"
import torch
from transformers import set_seed
from pneumonia_hf.distributed import start_scoring
from pneumonia_hf.inference.batch import find_inputs
from pneumonia_hf.inference.network import Network
from pneumonia_hf.inference.parts import merge_parts, prepare_parts, score_parts
from pneumonia_hf.inference.predictor import Predictor

data, count, model, output = json.loads(sys.argv[1])
state = start_scoring()
torch.set_num_threads(1)
index, processes = (state.process_index, state.num_processes) if state else (0, 1)
if model == "tiny":
    from pneumonia_hf.imaging.preprocess import make_processor
    from pneumonia_hf.models.xray_cnn import XrayCnnConfig, XrayCnnForImageClassification

    set_seed(0)
    config = XrayCnnConfig(widths=[8, 16, 24], depths=[1, 1, 1],
                           id2label={0: "NORMAL", 1: "PNEUMONIA"})
    processor = make_processor(32, (0.5,) * 3, (0.5,) * 3)
    predictor = Predictor(Network(XrayCnnForImageClassification(config), processor))
else:
    predictor = Predictor.from_pretrained(model, device="cpu")
files = find_inputs([data])
list(predictor.predict_files(files[:1]))
folder, images = Path(output), ((None, files[at % len(files)]) for at in range(count))
if index == 0:
    prepare_parts(folder, [*map(str, files)])
if state:
    state.wait_for_everyone()
started, used = time.perf_counter(), time.process_time()
found = score_parts(predictor, images, folder, index, processes)
used = time.process_time() - used
if state:
    state.wait_for_everyone()
if index == 0:
    decisions, _ = merge_parts(folder, folder.with_suffix(".csv"), found)
    assert decisions.total() == count
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([index, time.perf_counter() - started, used, peak]), flush=True)
"""


def main() -> None:
    """Measure and print the tables."""
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", required=True, help="Folder with images.")
    parser.add_argument("--images", type=int, default=400, help="Files, repeated if fewer.")
    parser.add_argument("--rounds", type=int, default=3, help="0: memory only.")
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="Default: the one included.")
    parser.add_argument("--counts", type=int, nargs="*", default=[], help="For the memory.")
    options = parser.parse_args()
    print(f"{describe_machine()}; {options.images} images, {Path(options.model).name}.\n")
    if options.rounds:
        compare(options)
    if options.counts:
        print("| images | peak memory, MB | CPU, ms an image |\n|---|---|---|")
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            link_images(options.data_dir, Path(folder), count)
            _, _, used, peak = measure([], folder, count, "tiny")
        print(f"| {count:,} | {peak:.0f} | {1000 * used / count:.2f} |", flush=True)


def link_images(data: str, folder: Path, count: int) -> None:
    """Make `count` links to the images of a folder, a thousand in each of new folders."""
    from pneumonia_hf.inference.batch import find_inputs

    files = [file.resolve() for file in find_inputs([data])]
    for number in range(count):
        place = folder / f"{number // 1000:04}"
        place.mkdir(exist_ok=True)
        file = files[number % len(files)]
        (place / f"{number:07}{file.suffix}").symlink_to(file)


def compare(options) -> None:
    """Print the seconds of one process and of two, and their ratios."""
    best = {1: [float("inf")] * 3, 2: [float("inf")] * 3}
    for _ in range(options.rounds):
        for processes, least in best.items():
            launcher = [] if processes == 1 else LAUNCHER
            whole, *rest, _ = measure(launcher, options.data_dir, options.images, options.model)
            best[processes] = [*map(min, least, (whole, *rest))]
    print("| processes | whole command, s | scoring, s | CPU of the busiest process, s |")
    print("|---|---|---|---|")
    ratios = [one / two for one, two in zip(*best.values(), strict=True)]
    for name, values in (*best.items(), ("ratio", ratios)):
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |", flush=True)
    print()


def measure(launcher: list[str], data: str, count: int, model: str) -> list[float]:
    """Score images; return the seconds of the command, of scoring and of the CPU, and the peak."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"
        program.write_text(PROGRAM)
        arguments = [program, json.dumps([data, count, model, str(Path(folder) / "parts")])]
        started = time.perf_counter()
        command = [sys.executable, *launcher, *map(str, arguments)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        whole = time.perf_counter() - started
    found = [json.loads(line)[1:] for line in run.stdout.splitlines() if line.startswith("[")]
    return [whole, *map(max, zip(*found, strict=True))]


if __name__ == "__main__":
    run_script(main)
