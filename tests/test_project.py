"""Pins, the Space's front matter, the README and the default model."""

import re

import yaml
from helpers import ROOT


def read_pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower().replace("_", "-").partition("[")[0]: number for package, number in pins}


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


def test_package_and_project_have_one_version():
    import tomllib

    import pneumonia_hf

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == pneumonia_hf.__version__
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

    from pneumonia_hf.evaluation.report.write import SCHEMA_FILE

    schema = json.loads(SCHEMA_FILE.read_text())
    reports = [*(ROOT / "eval_reports").glob("*/report.json")]
    current = 0
    for path in reports:
        numbers = json.loads(path.read_text())
        if numbers.get("schema_version") == schema["properties"]["schema_version"]["const"]:
            jsonschema.validate(numbers, schema)
            assert "holds no X-ray" in path.with_name("report.html").read_text()
            current += 1
        assert not path.with_name("examples.png").exists()
    assert current >= 3


def test_manifest_names_the_commit_of_this_code():
    import subprocess

    from pneumonia_hf.training.manifest import find_commit

    if not (ROOT / ".git").exists():
        assert find_commit() is None
        return
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert find_commit().removesuffix("+changes") == head
