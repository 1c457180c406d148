"""The handler in a pushed repository: the numbers of the app, from every kind of request."""

import base64
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import numpy as np
import pytest
from helpers import draw_xray
from packaging.requirements import Requirement
from PIL import Image
from xray_files import encode, make_dicom

from pneumonia_hf import Predictor
from pneumonia_hf.errors import UserError
from pneumonia_hf.models.model_folder import DEFAULT_MODEL
from pneumonia_hf.publish.endpoint import ENDPOINT_NEEDS, EndpointHandler
from pneumonia_hf.publish.push import collect_files

IMAGE = draw_xray(0, ill=True, size=(300, 240))
DICOM = make_dicom(np.asarray(IMAGE).astype(np.uint16) * 16)
PNG = encode(IMAGE, "PNG")


def to_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def handler() -> EndpointHandler:
    return EndpointHandler(str(DEFAULT_MODEL))


def test_each_kind_of_request_has_the_numbers_of_the_predictor(handler):
    predictor = Predictor.from_pretrained(DEFAULT_MODEL)
    expected = predictor.predict(PNG).to_dict()
    assert {"decision", "threshold", "warnings", "distance"} <= expected.keys()
    deep = Image.fromarray(np.asarray(IMAGE).astype(np.uint16) * 257)
    for content in (PNG, DICOM, encode(deep, "PNG"), encode(IMAGE, "JPEG")):
        found = handler({"inputs": {"file": to_text(content)}})
        assert found == predictor.predict(content).to_dict()
        json.dumps(found)
    assert handler({"inputs": to_text(PNG)}) == expected
    assert handler({"inputs": f"data:image/png;base64,{to_text(PNG)}"}) == expected
    lines = base64.encodebytes(PNG).decode()
    assert lines.count("\n") > 1
    for text in (lines, lines.replace("\n", "\r\n"), f"data:image/png;base64,{lines}"):
        assert handler({"inputs": {"file": text}}) == expected
    assert handler({"inputs": PNG}) == expected
    assert handler({"inputs": IMAGE.convert("RGB")}) == expected  # as the endpoint decodes it


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "There is no image; give `inputs` as"),
        ({"inputs": {"image": "x"}}, "There is no image"),
        ({"inputs": "/etc/passwd"}, "no base64"),
        ({"inputs": "https://example.com/x.png"}, "no base64"),
        ({"inputs": {"file": f"{to_text(PNG)}\n!"}}, "no base64"),
        ({"inputs": {"file": to_text(b"no image")}}, "the image"),
    ],
)
def test_what_is_no_image_is_one_sentence(handler, data, words):
    with pytest.raises(UserError, match=words):
        handler(data)


def test_a_large_upload_is_refused(handler, monkeypatch):
    monkeypatch.setattr(handler, "limits", type(handler.limits)(upload_mb=1))
    with pytest.raises(UserError, match="more than 1 MB"):
        handler({"inputs": bytes(1_000_001)})


def close_over(names: set[str]) -> set[str]:
    """Return the distributions that these need, and those that they need."""
    found, left = set(), {Requirement(one).name.lower().replace("_", "-") for one in names}
    while left:
        name = left.pop()
        try:
            needs = requires(name) or []
        except PackageNotFoundError:  # of another build of torch
            continue
        found.add(name)
        for text in needs:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                left |= {need.name.lower().replace("_", "-").replace(".", "-")} - found
    return found


@pytest.mark.slow
def test_the_repository_runs_with_its_own_requirements_alone(tmp_path):
    """As an Inference Endpoint does: handler.py, the wheel, and no other package."""
    files = collect_files(shutil.copytree(DEFAULT_MODEL, tmp_path / "model"), "me/x", None)
    repository, site = tmp_path / "repository", tmp_path / "site"
    repository.mkdir(), site.mkdir()
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.read_bytes()
        (repository / name).write_bytes(content)
    lines = (repository / "requirements.txt").read_text().splitlines()
    names = {line for line in lines if not line.startswith("#")}
    assert {line.partition("==")[0] for line in names} == ENDPOINT_NEEDS
    for name in close_over(names):
        for file in distribution(name).files or []:
            top, target = file.parts[0], site / file.parts[0]
            if top not in ("..", "__pycache__") and not target.exists():
                target.symlink_to(Path(distribution(name).locate_file(top)))
    assert not (site / "gradio").exists() and not (site / "pneumonia_hf").exists()
    (tmp_path / "x.dcm").write_bytes(DICOM)
    code = (
        "import base64, json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from handler import EndpointHandler\n"
        "text = base64.b64encode(open(sys.argv[2], 'rb').read()).decode()\n"
        "print(json.dumps(EndpointHandler(sys.argv[1])({'inputs': {'file': text}})))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, repository, tmp_path / "x.dcm"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    expected = Predictor.from_pretrained(DEFAULT_MODEL).predict(DICOM).to_dict()
    assert found == json.loads(json.dumps(expected))
