"""The wheel that is pushed, and the scripts beside it."""

import base64
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version

import pytest
from helpers import ROOT

from pneumonia_hf.publish import wheel
from pneumonia_hf.publish.wheel import WHEEL_NAME, add_wheel, make_wheel, pin_requirements


def test_wheel_holds_the_package_without_the_default_model_or_foreign_files():
    name, content = make_wheel()
    assert WHEEL_NAME.fullmatch(name)
    archive = zipfile.ZipFile(io.BytesIO(content))
    names = set(archive.namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pneumonia_hf").rglob("*.py")}
    assert sources <= names
    data = {"imaging/phantom.npz", "demo/page/page.css", "models/model_card.md",
            "reporting/templates/page.html", "evaluation/schema.json"}  # fmt: skip
    assert {f"pneumonia_hf/{one}" for one in data} <= names
    page = (ROOT / "pneumonia_hf/demo/page").iterdir()  # a Space opens its examples at the start
    assert {one.relative_to(ROOT).as_posix() for one in page} <= names
    assert not [one for one in names if "default_model" in one or "__pycache__" in one]
    assert len(content) < 3_000_000
    (about,) = (archive.read(one).decode() for one in names if one.endswith(".dist-info/METADATA"))
    assert f"\nName: pneumonia-hf\nVersion: {version('pneumonia-hf')}\n" in about
    # RECORD names each file with its hash, as pip checks it.
    (record,) = (one for one in names if one.endswith("/RECORD"))
    for line in archive.read(record).decode().splitlines():
        path, digest, _ = line.rsplit(",", 2)
        if path != record:
            own = base64.urlsafe_b64encode(hashlib.sha256(archive.read(path)).digest())
            assert digest == f"sha256={own.rstrip(b'=').decode()}", path
            names.remove(path)
    assert names == {record}


def test_the_same_package_is_the_same_wheel(tmp_path, monkeypatch):
    before = make_wheel()
    make_wheel.cache_clear()
    assert make_wheel() == before
    package = tmp_path / "pneumonia_hf"
    (package / "demo").mkdir(parents=True)
    for name in ("__init__.py", "xray.png", "patients.csv", ".env", "demo/x.dcm"):
        (package / name).write_bytes(b"1")
    monkeypatch.setattr(wheel.pneumonia_hf, "__file__", str(package / "__init__.py"))
    make_wheel.cache_clear()
    names = zipfile.ZipFile(io.BytesIO(make_wheel()[1])).namelist()
    make_wheel.cache_clear()
    assert [one for one in names if "dist-info" not in one] == ["pneumonia_hf/__init__.py"]


def test_requirements_pin_what_is_declared_at_the_versions_installed_here():
    lines = pin_requirements().splitlines()[1:]
    assert f"torch=={version('torch').partition('+')[0]}" in lines
    assert f"gradio[mcp]=={version('gradio')}" in lines
    assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\d.]+(post\d+)?", line) for line in lines), lines
    assert not [line for line in lines if line.startswith(("optuna", "kornia"))]  # of training
    assert pin_requirements({"numpy"}).splitlines()[1:] == [f"numpy=={version('numpy')}"]


def test_script_uses_the_wheel_beside_it_and_refuses_another(tmp_path):
    files = add_wheel("run.py", "import pneumonia_hf\nprint(pneumonia_hf.__file__)\n")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    call = [sys.executable, "-S", str(tmp_path / "run.py")]  # without what is installed
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
    assert re.search(r"pneumonia-hf-\w+/pneumonia_hf/__init__.py$", done.stdout.strip()), done
    (path,) = tmp_path.glob("*.whl")
    path.write_bytes(path.read_bytes() + b"x")
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode and "is not the one that this file was written for" in done.stderr


@pytest.mark.slow
def test_pip_installs_the_wheel(tmp_path):
    name, content = make_wheel()
    (tmp_path / name).write_bytes(content)
    flags = [
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        tmp_path / "site",
    ]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *flags, tmp_path / name]
    subprocess.run(command, check=True)
    assert (tmp_path / "site" / "pneumonia_hf" / "publish" / "wheel.py").exists()
