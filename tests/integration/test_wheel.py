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

# Several commands in one process: each start takes longer than the commands.
COMMANDS = """
import json, sys
import pneumonia_hf
from pneumonia_hf.commands import run

print(pneumonia_hf.__file__, flush=True)
for words in json.loads(sys.argv[1]):
    sys.argv = ["pneumonia-hf", *words]
    try:
        run()
    except SystemExit as ended:
        if ended.code:
            raise
"""


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


@pytest.mark.slow
def test_wheel_has_the_command_and_holds_no_test_or_script(installed):
    (metadata,) = installed.glob("*.dist-info")
    assert "pneumonia-hf = pneumonia_hf.commands:run" in (metadata / "entry_points.txt").read_text()
    assert {one.name for one in installed.iterdir()} == {"pneumonia_hf", metadata.name}


@pytest.mark.slow
def test_wheel_trains_evaluates_and_predicts_without_the_repository(installed, tmp_path):
    data = draw_folder(tmp_path / "data", patients=20)
    image = next(data.rglob("*.png"))
    commands = [
        ["train", "--backbone", "xray-cnn", "--weights", "none", "--image_size", "32",
         "--data_dir", data, "--output_dir", "run", "--num_train_epochs", "1",
         "--bootstrap_resamples", "20", "--threshold_resamples", "50", "--attribution_images", "1",
         "--report_to", "none"],
        ["evaluate", "--model", "run", "--data_dir", data, "--split", "test", "--quick",
         "--resamples", "20", "--output_dir", "report"],
        ["predict", "--input", image, "--output", "scores.csv"],  # by the model included
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands, default=str)],
        capture_output=True,
        text=True,
        cwd=tmp_path,  # an empty folder
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(str(installed))
    assert json.loads((tmp_path / "report" / "report.json").read_text())["split"] == "test"
    (row,) = csv.DictReader((tmp_path / "scores.csv").read_text().splitlines())
    assert row["file"] == str(image)
