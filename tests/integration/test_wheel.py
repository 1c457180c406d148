"""The wheel alone, without the repository: predict, evaluate and train."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT, draw_folder

COMMAND = [sys.executable, "-c", "from pneumonia_hf.commands import run; run()"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the wheel is unpacked, which is what an installation does."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools writes beside the sources
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pneumonia_hf", source / "pneumonia_hf", ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    flags = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", folder, source], check=True
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def call(installed, tmp_path):
    """Return a function that runs the command in an empty folder, with the package of the wheel."""

    def run(*words: object) -> str:
        done = subprocess.run(
            [*COMMAND, *map(str, words)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


@pytest.mark.slow
def test_wheel_has_the_command_and_holds_no_test_or_script(installed):
    (metadata,) = installed.glob("*.dist-info")
    assert "pneumonia-hf = pneumonia_hf.commands:run" in (metadata / "entry_points.txt").read_text()
    assert {one.name for one in installed.iterdir()} == {"pneumonia_hf", metadata.name}


@pytest.mark.slow
def test_wheel_trains_evaluates_and_predicts_without_the_repository(call, installed, tmp_path):
    data = draw_folder(tmp_path / "data", patients=20)
    found = subprocess.run(
        [sys.executable, "-c", "import pneumonia_hf; print(pneumonia_hf.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    assert found.stdout.startswith(str(installed))
    call(
        "train", "--backbone", "xray-cnn", "--weights", "none", "--image_size", 32,
        "--data_dir", data, "--output_dir", "run", "--num_train_epochs", 1, "--report_to", "none",
        "--bootstrap_resamples", 20, "--threshold_resamples", 50, "--attribution_images", 1,
    )  # fmt: skip
    call(
        "evaluate", "--model", "run", "--data_dir", data, "--split", "test", "--quick",
        "--resamples", 20, "--output_dir", "report",
    )  # fmt: skip
    assert json.loads((tmp_path / "report" / "report.json").read_text())["split"] == "test"
    image = next(data.rglob("*.png"))
    call("predict", "--input", image, "--output", "scores.csv")  # the model included
    (row,) = csv.DictReader((tmp_path / "scores.csv").read_text().splitlines())
    assert row["file"] == str(image)
