"""Fixtures, and the environment of every test: no network, one cache, one thread."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import cache
from pathlib import Path

# Before huggingface_hub is imported: no test may reach beyond this machine.
os.environ.update(
    HF_HUB_OFFLINE="0",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    HF_EVALUATE_OFFLINE="1",
)
os.environ.setdefault("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# One folder for temporary files and the cache of the whole run, which the workers share and the
# first process removes: killed processes and gradio's client leave folders behind. The folders of
# `tmp_path` stay outside of it, since pytest keeps those of failed tests.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="pneumonia-hf-tests-")
    os.environ.setdefault("PNEUMONIA_HF_CACHE", str(Path(tempfile.tempdir) / "cache"))

import pytest
from xdist.scheduler import LoadFileScheduling

from pneumonia_hf.models.backbones import BACKBONES


def pytest_sessionstart(session) -> None:
    """Import what is heavy, but not in the process that only waits for the workers."""
    if session.config.getoption("numprocesses") and "PYTEST_XDIST_WORKER" not in os.environ:
        return
    import evaluate  # noqa: F401
    import helpers  # noqa: F401
    import jinja2
    import matplotlib.figure  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch

    torch.set_num_threads(1)  # tiny models gain nothing from more, and lose where cores are busy
    # The Hub's client compiles the template of each card anew: a tenth of the time of a tiny run.
    jinja2.Environment.from_string = cache(jinja2.Environment.from_string)


def pytest_sessionfinish(session) -> None:
    """Remove the temporary files, when the last worker has ended."""
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    gc.unfreeze()  # libraries check at exit that nothing of theirs is left


# gradio makes an event loop for each lock of a page and closes none. Collected in a later test,
# that would fail it: by a warning, or in CPython 3.11 by interrupting the parser (gh-106905).
OPENED: list[asyncio.AbstractEventLoop] = []
_make_loop = asyncio.new_event_loop


def _make_and_record_loop() -> asyncio.AbstractEventLoop:
    OPENED.append(_make_loop())
    return OPENED[-1]


asyncio.new_event_loop = _make_and_record_loop


@pytest.hookimpl(trylast=True)  # after the fixtures have ended
def pytest_runtest_teardown() -> None:
    """Close the event loops that a test has left open, and leave its threads and its objects.

    Training in this process sets one thread for each core: with those, audits of later tests took
    ten times the CPU time where the cores were busy. And it collects garbage twice, for which
    Python walks through all objects that are not frozen: 0.3 s of the 0.8 s of a tiny run, and more
    the more modules other tests have imported.
    """
    sys.modules["torch"].set_num_threads(1)
    for loop in [one for one in OPENED if not one.is_running()]:
        OPENED.remove(loop)
        loop.close()  # does nothing if it is closed
    gc.collect()
    gc.freeze()


# Of the tests of training over all families, those of a transformer and of a network with batch
# norm are quick: transformers renames the keys of the first, and the second has buffers.
QUICK_IN_TRAINING = ("vit-base", "efficientnet-b0")
# Of the other tests over all families, those of a kind of network each.
QUICK = (*QUICK_IN_TRAINING, "convnextv2-tiny", "dinov2-small", "xray-cnn")
# Their tiny model is that of efficientnet-b0.
DUPLICATES = ("efficientnet-b3", "efficientnet-lite0")

# Folders of files that take long.
LONG = ("integration", "demo", "training", "search", "models")


# Files that share a fixture of many seconds go to one worker, so that it is made once.
SHARED = {
    "app_url": ("/demo/", "/test_docs.py"),
    "clean_findings": ("/audit/test_run.py", "/audit/test_shortcuts.py"),
    "report": (
        "/evaluation/test_report.py",
        "/sections/test_calibration.py",
        "/sections/test_checklist.py",
        "/sections/test_published.py",
    ),
}


class FileScheduling(LoadFileScheduling):
    """Whole files go to one worker, and those that share a fixture of SHARED to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        shared = (name for name, parts in SHARED.items() if any(part in file for part in parts))
        return next(shared, file)


def pytest_xdist_make_scheduler(config, log) -> FileScheduling:
    # Not by xdist_group: xdist 3.8 adds the group to a name that pytest 9.2 no longer reads.
    return FileScheduling(config, log)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config, items) -> None:
    """Keep the families that a test is for, and mark those as slow that are not quick in it.

    By marks and not by other parameters of `backbone_name`: a session fixture that depends on it
    would keep the value of another family.
    """
    kept, dropped = [], []
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("backbone_name")
        families = item.get_closest_marker("families")
        (dropped if family and families and family not in families.args else kept).append(item)
        training = item.path.parent.name == "training"
        quick = item.get_closest_marker("quick_families")
        names = quick.args if quick else QUICK_IN_TRAINING if training else QUICK
        if family and (family in DUPLICATES or family not in names):
            item.add_marker(pytest.mark.slow)
    # The long files first, so that both workers end together.
    items[:] = sorted(kept, key=lambda item: item.path.parent.name not in LONG)
    if dropped:
        config.hook.pytest_deselected(items=dropped)


@pytest.fixture(autouse=True)
def first_figure_only(request, monkeypatch) -> None:
    """Draw the first figure of a report alone: drawing all takes most of the time of a report.

    The tests with the mark `figures`, and fixtures that write a report for several tests, draw all.
    """
    if (write := sys.modules.get("pneumonia_hf.reporting.write")) is None:
        return
    if "figures" not in request.keywords:
        save = write.save_figures
        monkeypatch.setattr(write, "save_figures", lambda all, folder: save(all[:1], folder))


@pytest.fixture(scope="session")
def xray_folder(tmp_path_factory) -> Path:
    """Class folders of 24 patients a class, two images each."""
    from helpers import draw_folder

    return draw_folder(tmp_path_factory.mktemp("xrays") / "data", patients=24, images=2)


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> Path:
    """Three splits of X-rays in which an audit finds no fault."""
    from helpers import draw_xrays

    folder = tmp_path_factory.mktemp("clean")
    for number, split in enumerate(("train", "val", "test")):
        draw_xrays(folder / split, start=100 * number)
    return folder


@pytest.fixture(scope="session")
def adults(tmp_path_factory) -> Path:
    """A data set with a third class, and a metadata.csv of views and patients."""
    from helpers import draw_folder, draw_xray

    folder = draw_folder(tmp_path_factory.mktemp("adults"), patients=12, seed=7000)
    (folder / "OTHER").mkdir()
    for number in range(5):
        draw_xray(8000 + number, ill=bool(number % 2)).save(folder / "OTHER" / f"x{number}.png")
    (folder / "OTHER" / "torn.png").write_bytes(b"\x89PNG broken")
    rows = ["file_name,patient_id,view"]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        name = path.relative_to(folder).as_posix()
        view = "AP" if number % 3 else "PA"
        rows.append(f"{name},adult {number // 2},{'' if number == 0 else view}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="session", params=sorted(BACKBONES))
def backbone_name(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny_body(tmp_path_factory, backbone_name) -> Path:
    from helpers import save_tiny_body

    return save_tiny_body(backbone_name, tmp_path_factory.mktemp(f"body-{backbone_name}"))


@pytest.fixture(scope="session")
def saved_model(request, tmp_path_factory, backbone_name, tiny_body, xray_folder) -> Path:
    """A saved model folder of every family, trained by `train` itself."""
    from helpers import train_tiny

    if backbone_name == "convnextv2-tiny":
        return request.getfixturevalue("tiny_model")
    output = tmp_path_factory.mktemp("runs") / backbone_name
    return train_tiny(backbone_name, tiny_body, xray_folder, output, curves=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, xray_folder) -> Path:
    """A finished ConvNeXt V2, where the family does not matter."""
    from helpers import save_tiny_body, train_tiny

    body = save_tiny_body("convnextv2-tiny", tmp_path_factory.mktemp("body"))
    output = tmp_path_factory.mktemp("runs") / "tiny"
    return train_tiny(
        "convnextv2-tiny", body, xray_folder, output, attribution_images=1, curves=True
    )


@pytest.fixture(scope="module")
def exported_once():
    """Keep the export of each network and layer: it takes most of the time of a backend."""
    from pneumonia_hf.inference import backends

    export, kept = backends.export_network, {}

    def export_or_take(model, images, layer=None, class_index=None):
        weights = hashlib.sha256()
        for value in model.state_dict().values():
            weights.update(value.numpy().tobytes())
        key = weights.digest(), images.shape[1:], layer, class_index
        if key not in kept:
            kept[key] = export(model, images, layer, class_index)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "export_network", export_or_take)
        yield


@pytest.fixture
def hub():
    """A Hub on this machine, without repositories."""
    from hub_server import LocalHub

    with LocalHub() as server:
        yield server


@pytest.fixture
def own_client(hub, tmp_path, monkeypatch):
    """Let the client in this process ask the local Hub, as its user `me`."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_me")


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def serve_app(model, port, **variables):
    """Serve the app as it is, app.py in a process of its own, and give its address."""
    environment = os.environ | {"MODEL_ID": str(model), "GRADIO_SERVER_PORT": str(port)}
    log = (model.parent / (f"app-{port}.log" if variables else "app.log")).open("w+")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve().parents[1] / "app.py")],
        env=environment | variables,
        stdout=log,
        stderr=log,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(480):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except urllib.error.HTTPError:  # it answers, and wants a login
                time.sleep(0.5)
                break
            except OSError:
                assert server.poll() is None, log.seek(0) or log.read()
                time.sleep(0.25)
        yield url
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture(scope="session")
def app_url(tiny_model):
    """The address of the app with a tiny model."""
    with serve_app(tiny_model, find_free_port()) as url:
        yield url
