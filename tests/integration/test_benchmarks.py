"""The benchmarks, each for one real step on a few drawn images: they run, and print numbers."""

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from browsers import BROWSER
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
    "augmentation.py": Case(
        "--backbones xray-cnn --batch 16 --steps 2 --image_size 64",
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
    "gate.py": Case("--data_dir DATA --model MODEL --images 2 --other_xrays DATA", (("number",),)),
    "gpu.py": Case(
        "--models convnext-tiny --batch 2 --steps 1 --image_size 32 --eager",
        (("images/s", "TFLOP/s"),),
    ),
    "load.py": Case(
        "--clients 2 --requests 2 --rounds 1 --alone 2 --model MODEL",
        (("clients", "answers", "p50, ms", "p95, ms", "answers/s", "bare forward pass, ms"),),
    ),
    "memory.py": Case(
        "--backbones xray-cnn --rounds 1 --steps 1 --batch 2 --image_size 64",
        (("returns it, images/s", "keeps it, images/s", "ratio"),),
    ),
    "page.py": Case(
        "--moves 2 --model MODEL",
        (("median, ms", "slowest, ms", "bare forward pass, ms"),),
    ),
    "processes.py": Case(
        "--data_dir DATA --model MODEL --images 8 --rounds 1 --counts 16",
        (
            ("whole command, s", "scoring, s", "CPU of the busiest process, s"),
            ("images", "peak memory, MB", "CPU, ms an image"),
        ),
    ),
    "precision.py": Case("--backbones xray-cnn --steps 1 --batch 2", (("ratio of their speeds",),)),
    "scale.py": Case(
        "--data_dir DATA --work_dir WORK --counts 80 --steps audit train --image_size 64",
        (("images", "peak memory, MB", "ms an image"),),
    ),
    "scoring.py": Case(
        "--data_dir DATA --full_size DATA --model MODEL --images 8 --rounds 1",
        (("files", "images/s", "ratio"),),
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


# Runs each benchmark as its own program, but in one process: their imports take most of the time.
RUN_ALL = """
import json, runpy, sys, traceback
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

results = {}
for path, flags in json.loads(sys.argv[1]).items():
    sys.argv, status, out, err = [path, *flags], 0, StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        status = traceback.format_exc()
    results[path] = [status, out.getvalue(), err.getvalue()[-2000:]]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list]:
    """The status and the output of each benchmark, run as a user would for its one small step."""
    work = tmp_path_factory.mktemp("benchmarks")
    data = draw_folder(work / "data", patients=20, images=2)
    places = {"DATA": data, "WORK": work / "work", "MODEL": work / "model"}
    body = save_tiny_body("xray-cnn", work / "body")
    for one in build_model(ModelConfig("xray-cnn", str(body), 28)):
        one.save_pretrained(work / "model")
    commands = {
        str(ROOT / "benchmarks" / name): [
            str(places.get(flag, flag)) for flag in case.flags.split()
        ]
        for name, case in CASES.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        capture_output=True,
        text=True,
        env=os.environ
        | {"PNEUMONIA_HF_CACHE": str(work / "cache"), "PYTHONPATH": path_with("benchmarks")},
        preexec_fn=use_one_core,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {Path(path).name: result for path, result in found.items()}


def path_with(folder: str) -> str:
    """Return PYTHONPATH with a folder of the repository, from which a script there imports."""
    return os.pathsep.join(filter(None, [str(ROOT / folder), os.environ.get("PYTHONPATH")]))


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_takes_a_step_and_prints_numbers(name, results):
    assert name in CASES, f"add to CASES how benchmarks/{name} runs for one step"
    status, printed, errors = results[name]
    if name == "page.py" and BROWSER is None:
        assert "Chromium is needed" in str(status)
        pytest.skip("no Chromium on this machine")
    assert status == 0, (status, errors)
    check_tables(printed, CASES[name].tables)


def test_benchmarks_import_and_each_has_a_case():
    assert BENCHMARKS == sorted(CASES)
    code = "import runpy, sys; [runpy.run_path(path, run_name='x') for path in sys.argv[1:]]"
    paths = [str(ROOT / "benchmarks" / name) for name in BENCHMARKS]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path_with("benchmarks")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
