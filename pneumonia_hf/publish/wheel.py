"""The package as a wheel in a repository of the Hub, and the requirements of what runs there.

The package may not be on the package index. The same files give the same bytes, so that pushing
them again changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Collection
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pneumonia_hf
from pneumonia_hf.errors import UserError
from pneumonia_hf.models.model_folder import DEFAULT_MODEL

PROJECT = "pneumonia-hf"
WHEEL_NAME = re.compile(r"pneumonia_hf-[\w.+]+-py3-none-any\.whl")
# Of the package's files; whatever else lies there stays on this machine.
SUFFIXES = {".py", ".md", ".json", ".html", ".css", ".js", ".npz"}
EXAMPLE = "rg1.png"  # the one image of the package
# What a file beside the wheel begins with. It does not leave the wheel to pip: a Space installs its
# requirements before its files are there, and pip checks one hash only where all have one.
LOADER = '''\
"""Written by pneumonia-hf {version}: use the package in the wheel beside this file."""

import hashlib
import io
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "{name}"
SHA256 = "{sha256}"

content = (Path(__file__).parent / WHEEL).read_bytes()
if hashlib.sha256(content).hexdigest() != SHA256:
    raise RuntimeError(f"{{WHEEL}} is not the one that this file was written for; push it again.")
packages = tempfile.mkdtemp(prefix="pneumonia-hf-")
zipfile.ZipFile(io.BytesIO(content)).extractall(packages)
sys.path.insert(0, packages)

'''


@cache
def make_wheel() -> tuple[str, bytes]:
    """Return the name and the content of a wheel of this package, without the default model."""
    package = Path(pneumonia_hf.__file__).parent
    about = _find_project()
    name = f"pneumonia_hf-{about.version}"
    files = {
        f"pneumonia_hf/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in package.rglob("*")
        if (path.suffix in SUFFIXES or path.name == EXAMPLE)
        and DEFAULT_MODEL not in path.parents
        and path.is_file()
    }
    info = f"{name}.dist-info"
    tag = "Wheel-Version: 1.0\nGenerator: pneumonia-hf\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/WHEEL"] = tag.encode()
    # An editable installation has an egg-info folder too, which names its metadata otherwise.
    metadata = about.read_text("METADATA") or about.read_text("PKG-INFO")
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/entry_points.txt"] = (about.read_text("entry_points.txt") or "").encode()
    record = f"{info}/RECORD"
    lines = [f"{path},{_hash(content)},{len(content)}" for path, content in sorted(files.items())]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in sorted(files.items()):  # with the date of 1980, the same each time
            archive.writestr(zipfile.ZipInfo(path), content, zipfile.ZIP_DEFLATED)
    return f"{name}-py3-none-any.whl", buffer.getvalue()


def add_wheel(runner: str, ending: str, needs: Collection[str] | None = None) -> dict[str, bytes]:
    """Return the wheel, a script `runner` that ends with `ending`, and requirements.txt.

    `needs` are the packages that are required, of those that this one declares; by default all.
    """
    name, content = make_wheel()
    digest = hashlib.sha256(content).hexdigest()
    loader = LOADER.format(version=pneumonia_hf.__version__, name=name, sha256=digest)
    return {
        name: content,
        runner: (loader + ending).encode(),
        "requirements.txt": pin_requirements(needs).encode(),
    }


def pin_requirements(needs: Collection[str] | None = None) -> str:
    """Return requirements.txt: what the package declares, in the versions installed here."""
    lines = ["# The versions with which pneumonia-hf pushed this."]
    for declared in _find_project().requires or []:
        name, extras = re.match(r"([\w.-]+)(\[[\w,]+\])?", declared).groups()
        if "extra ==" not in declared and (needs is None or name in needs):
            # A build such as 2.15.0+cpu is not on the package index.
            lines.append(f"{name}{extras or ''}=={version(name).partition('+')[0]}")
    return "\n".join([*lines, ""])


def _hash(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return f"sha256={digest.rstrip(b'=').decode()}"


def _find_project():
    try:
        return distribution(PROJECT)
    except PackageNotFoundError as error:
        raise UserError("pneumonia-hf is not installed; run pip install -e . first.") from error
