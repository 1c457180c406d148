"""The benchmarks, each for one real step on a few drawn images: they run, and print numbers."""

import math
import os
import random
import subprocess
import sys
from dataclasses import dataclass

import pytest
from helpers import ROOT, draw_folder, save_tiny_body

from pneumonia_hf.models.build import ModelConfig, build_model

# A name that begins with an underscore is of a module that benchmarks share.
BENCHMARKS = sorted(path.name for path in (ROOT / "benchmarks").glob("[!_]*.py"))


@dataclass(frozen=True)
class Case:
    """Flags for one small step, and the columns of each table that hold numbers."""

    flags: str
    tables: tuple[tuple[str, ...], ...]


CASES = {
    "attribution.py": Case(
        "--data_dir DATA --model MODEL --images 2",
        (("images",), ("images",), ("images",)),
    ),
    "augmentation.py": Case(
        "--backbones xray-cnn --batch 2 --steps 1 --image_size 64",
        (("ms a batch", "of a xray-cnn step"),),
    ),
    "backbones.py": Case(
        "--backbones xray-cnn --batch 2 --steps 1",
        (("pixels", "parameters, M", "weights, MB", "inference, images/s", "training"),),
    ),
    "feeding.py": Case(
        "--data_dir DATA --full_size DATA --steps 1 --warmup 0 --batch 2 --image_size 64 "
        "--no_compile",
        (
            ("from memory, images/s", "fed, images/s", "ratio", "of totals"),
            ("images/s", "ratio to the example's way", "of totals"),
        ),
    ),
    "gpu.py": Case(
        "--models convnext-tiny --batch 2 --steps 1 --image_size 32 --eager",
        (("images/s", "TFLOP/s"),),
    ),
    "precision.py": Case("--backbones xray-cnn --steps 1 --batch 2", (("ratio of their speeds",),)),
    "scale.py": Case(
        "--data_dir DATA --work_dir WORK --counts 80 --steps audit train --image_size 64",
        (("images", "peak memory, MB", "ms an image"),),
    ),
    "training.py": Case(
        "--data_dir DATA --models vit-tiny --epoch_models vit-tiny --images 32 "
        "--rounds 1 --steps 1 --warmup 0 --batch 8 --image_size 64",
        (
            ("bare loop, images/s", "train, images/s", "ratio", "of totals"),
            ("the example's epoch, s", "train's epoch, s", "ratio"),
        ),
    ),
}


def read_tables(text: str) -> list[list[dict[str, str]]]:
    """Return the rows of each table in Markdown, each cell by the title of its column."""
    tables, titles = [], None
    for line in text.splitlines():
        if not line.startswith("|"):
            titles = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if titles is None:
            titles = cells
            tables.append([])
        elif set(cells) != {"---"}:
            tables[-1].append(dict(zip(titles, cells, strict=True)))
    return tables


def check_tables(text: str, expected: tuple[tuple[str, ...], ...]) -> None:
    """Check that each table has rows, with finite positive numbers in the columns expected."""
    tables = read_tables(text)
    assert len(tables) == len(expected), text
    for rows, columns in zip(tables, expected, strict=True):
        assert rows, f"a table without a row:\n{text}"
        for row in rows:
            for column in columns:
                number = float(row[column].replace(",", ""))
                assert math.isfinite(number) and number > 0, (column, row)


def use_one_core() -> None:
    """Leave one core to this process: where others are busy, two threads wait for each other."""
    if hasattr(os, "sched_setaffinity"):  # Linux alone has it
        os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})


def run_benchmark(name: str, work) -> subprocess.CompletedProcess:
    """Run a benchmark as a user would, for its one small step."""
    data = draw_folder(work / "data", patients=20, images=2)
    places = {"DATA": data, "WORK": work / "work", "MODEL": work / "model"}
    if "MODEL" in CASES[name].flags:
        body = save_tiny_body("xray-cnn", work / "body")
        for one in build_model(ModelConfig("xray-cnn", str(body), 28)):
            one.save_pretrained(work / "model")
    flags = [str(places.get(flag, flag)) for flag in CASES[name].flags.split()]
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"PNEUMONIA_HF_CACHE": str(work / "cache")},
        preexec_fn=use_one_core,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_takes_a_step_and_prints_numbers(name, tmp_path):
    assert name in CASES, f"add to CASES how benchmarks/{name} runs for one step"
    done = run_benchmark(name, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    check_tables(done.stdout, CASES[name].tables)


def test_benchmarks_import_and_each_has_a_case():
    assert BENCHMARKS == sorted(CASES)
    code = "import runpy, sys; [runpy.run_path(path, run_name='x') for path in sys.argv[1:]]"
    paths = [str(ROOT / "benchmarks" / name) for name in BENCHMARKS]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
