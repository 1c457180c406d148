"""Pins, the Space's front matter, the README and the default model."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The packages that need `train`; all others are what `pip install .` serves with.
TRAINING = {"audit", "training", "search"}
# What the other packages import inside a function only, and say so in a sentence without it.
OPTIONAL = {"imagehash", "kornia", "medmnist", "onnx", "onnxruntime", "openvino"}
# What another library imports for us.
USED_THROUGH = {"timm": "transformers", "onnxscript": "torch", "tensorboard": "transformers",
                "torchvision": "transformers"}  # fmt: skip


def read_pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package.partition("[")[0]): number for package, number in pins}


def read_declared(table: str) -> dict[str, Requirement]:
    """Return what pyproject.toml declares: for serving (`base`), or more for training (`train`)."""
    base, extras = PROJECT["dependencies"], PROJECT["optional-dependencies"]
    lines = base if table == "base" else extras[table]
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


find_distributions = cache(packages_distributions)


def list_files(*names: str) -> list[Path]:
    return [
        file
        for name in names
        for file in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")))
    ]


def list_libraries(files: Iterable[Path]) -> set[str]:
    """Return the distributions of other projects that these files import, also in functions."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
    own = {file.stem for name in ("", "tests", "benchmarks") for file in (ROOT / name).iterdir()}
    names = find_distributions()
    return {
        canonicalize_name(distribution)
        for name in found - own - sys.stdlib_module_names
        for distribution in names[name]
    }


def test_space_installs_the_gradio_that_was_tested():
    front = yaml.safe_load((ROOT / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == read_pins("requirements.txt")["gradio"]
    assert front["app_file"] == "app.py"
    assert (ROOT / front["app_file"]).exists()
    assert front["license"] == "apache-2.0"


def test_every_requirement_is_pinned_and_installed_so():
    from importlib.metadata import version

    pins = {
        **read_pins("requirements.txt"),
        **read_pins("requirements-train.txt"),
        **read_pins("requirements-dev.txt"),
    }
    locked = read_pins("constraints.txt")
    for package, number in pins.items():
        assert version(package).split("+")[0] == number
        assert locked[package] == number


def test_each_import_is_declared_where_it_is_needed():
    """What serving imports for all, what training adds in `train`; and nothing that is not used."""
    base, train = read_declared("base").keys(), read_declared("train").keys()
    files = list_files("app.py", "pneumonia_hf", "train_scripts")
    # A file of `compat` is imported by whoever needs its library alone.
    serving = [
        one for one in files
        if not TRAINING & {*one.relative_to(ROOT).parent.parts}
        and not (one.parent.name == "compat" and one.stem in train)
    ]  # fmt: skip
    assert list_libraries(serving) - OPTIONAL == base - USED_THROUGH.keys()
    assert list_libraries(files) | USED_THROUGH.keys() == base | train
    assert not base & train
    development = read_pins("requirements-dev.txt").keys()
    assert list_libraries(list_files("tests", "benchmarks", "docs")) <= base | train | development


@pytest.mark.parametrize("table, file", [("base", ""), ("train", "-train")])
def test_declared_ranges_admit_the_versions_that_are_tested(table, file):
    pins = read_pins(f"requirements{file}.txt")
    declared = read_declared(table)
    assert pins.keys() == declared.keys()
    for name, requirement in declared.items():
        assert requirement.specifier.contains(pins[name]), requirement
        signs = sorted(one.operator for one in requirement.specifier)
        assert signs == ["<", ">="], f"{requirement} is no range"


def test_package_and_project_have_one_version():
    import pneumonia_hf

    assert PROJECT["version"] == pneumonia_hf.__version__
    assert f"## {pneumonia_hf.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_names_only_files_that_exist():
    text = (ROOT / "README.md").read_text()
    assert "@@" not in text
    for name in re.findall(r"(?:train_scripts|eval_reports|pneumonia_hf|tests)/[\w./-]+\w", text):
        if "NAME" not in name and "/x" not in name:
            assert (ROOT / name).exists(), name


def test_default_model_is_small_and_whole():
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL, check_model_folder

    check_model_folder(DEFAULT_MODEL)
    assert sum(file.stat().st_size for file in DEFAULT_MODEL.iterdir()) < 20_000_000


def test_committed_reports_follow_the_schema_and_hold_no_image():
    import json

    import jsonschema

    from pneumonia_hf.evaluation.report import SCHEMA_FILE

    schema = json.loads(SCHEMA_FILE.read_text())
    reports = [*(ROOT / "eval_reports").glob("*/report.json")]
    current = 0
    for path in reports:
        numbers = json.loads(path.read_text())
        # Those of earlier versions are kept as they were written.
        if numbers.get("schema_version") == schema["properties"]["schema_version"]["enum"][-1]:
            jsonschema.validate(numbers, schema)
            assert "holds no X-ray" in path.with_name("report.html").read_text()
            current += 1
        assert not path.with_name("examples.png").exists()
    assert current >= 3


def test_manifest_names_the_commit_of_this_code():
    import subprocess

    from pneumonia_hf.training.provenance import find_commit

    if not (ROOT / ".git").exists():
        assert find_commit() is None
        return
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert find_commit().removesuffix("+changes") == head
