"""The endpoints of the app, called by the real client."""

import os
import re
import subprocess
import sys
import urllib.request
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from forks import run_fork
from helpers import ROOT

from pneumonia_hf import Predictor
from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.errors import SettingError


def test_page_states_its_limits_and_loads_nothing_from_other_servers(app_url):
    with urllib.request.urlopen(app_url, timeout=10) as answer:
        page = answer.read().decode()
    assert "not a medical device" in page
    assert not re.findall(r'(?:src|href)="https?://(?!127\.0\.0\.1)[^"]*\.(?:js|css|woff2?)', page)


@pytest.mark.slow
def test_a_mistake_ends_the_app_with_one_sentence():
    """The others are in a test below, within this process."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py")],
        env=os.environ | {"MAX_BATCH": "many"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: MAX_BATCH is 'many'")
    assert "Traceback" not in done.stderr


def test_arguments_are_not_ignored(monkeypatch):
    from pneumonia_hf.demo import serve as app

    monkeypatch.setattr("sys.argv", ["app.py", "--port", "1"])
    monkeypatch.setattr(app, "make_upload_folder", Mock(side_effect=AssertionError))
    with pytest.raises(SettingError, match="no arguments such as --port 1; its settings are"):
        app.main()


def serve_with(monkeypatch, tmp_path, **variables: str) -> tuple:
    """Return what the app loads its model with, given environment variables."""
    from pneumonia_hf.demo import serve as app

    class Loaded(Exception):
        pass

    def load(*given, **options):
        raise Loaded(*given, options)

    for name in ("MODEL_ID", "MODEL_REVISION", "BACKEND", "APP_LOGIN", "MAX_BATCH",
                 "POSITIVE_LABEL", "GRADIO_SERVER_PORT", "GRADIO_SERVER_NAME"):  # fmt: skip
        monkeypatch.setenv(name, variables.get(name, " \n"))  # a blank is none
    with monkeypatch.context() as patch, pytest.raises(Loaded) as found:
        patch.setattr(Predictor, "from_pretrained", load)
        app.serve(tmp_path)
    return found.value.args


@pytest.mark.slow
def test_settings_may_have_blanks_and_quotes_around_them(monkeypatch, tmp_path):
    from pneumonia_hf.demo import serve as app
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    model, revision, options = serve_with(monkeypatch, tmp_path)
    assert (model, revision, options["backend"]) == (DEFAULT_MODEL, None, "torch")
    assert options["positive_label"] == "PNEUMONIA"
    assert not {"GRADIO_SERVER_PORT", "GRADIO_SERVER_NAME"} & os.environ.keys()
    given = {"MODEL_ID": "me/x\n", "MODEL_REVISION": " 'v1'\r\n", "BACKEND": "onnx ",
             "POSITIVE_LABEL": " lung opacity", "GRADIO_SERVER_PORT": '"9123"\n',
             "MAX_BATCH": "'7' "}  # fmt: skip
    model, revision, options = serve_with(monkeypatch, tmp_path, **given)
    assert (model, revision, options["backend"]) == ("me/x", "v1", "onnx")
    assert (options["positive_label"], options["flags"][1]) == ("lung opacity", "POSITIVE_LABEL")
    assert os.environ["GRADIO_SERVER_PORT"] == "9123"
    assert Limits.from_environment().batch == 7
    monkeypatch.setenv("GRADIO_TEMP_DIR", f"{tmp_path / 'made'}\n")
    with app.make_upload_folder() as uploads:
        assert os.path.dirname(uploads) == str(tmp_path / "made")


def test_an_error_of_a_setting_names_its_variable(monkeypatch, tmp_path):
    from pneumonia_hf.demo import serve as app
    from pneumonia_hf.errors import UserError

    for variables in (
        {"MODEL_ID": "./nothing"},
        {"MODEL_ID": "my model"},
        {"MODEL_ID": "https://huggingface.co/datasets/me/x"},
        {"MODEL_ID": "https://example.com/me/x"},
        {"MODEL_REVISION": "v 1", "MODEL_ID": "./nothing"},
        {"BACKEND": "cuda"},
        {"APP_LOGIN": "ann"},
        {"GRADIO_SERVER_PORT": "99999"},
        {"MAX_BATCH": "many"},
        {"PREVALENCE": "10"},
        {"GRADIO_TEMP_DIR": "/dev/null/x"},
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError) as found:
            for name, value in variables.items():
                patch.setenv(name, value)
            with app.make_upload_folder():
                app.serve(tmp_path)
        assert next(iter(variables)) in str(found.value), found.value
        assert "--" not in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("error", [OSError("Cannot find empty port"), OSError(13, "Denied")])
def test_port_in_use_is_one_sentence_and_other_errors_are_not(monkeypatch, tmp_path, error):
    from pneumonia_hf.demo import app as demo
    from pneumonia_hf.demo import serve as app
    from pneumonia_hf.demo import uploads

    def launch(**_):
        raise error

    monkeypatch.setenv("GRADIO_SERVER_PORT", "7999")
    monkeypatch.setattr(Predictor, "from_pretrained", lambda *_, **__: Mock())
    monkeypatch.setattr(demo, "build_demo", lambda *_: Mock(launch=launch))
    monkeypatch.setattr(uploads, "delete_regularly", lambda *_: None)
    expected = OSError if error.errno else SettingError
    with pytest.raises(expected, match="Denied" if error.errno else "Port 7999 is in use"):
        app.serve(tmp_path)


@pytest.mark.slow
def test_garbage_is_collected_while_the_app_serves(tmp_path):
    program = (
        "import gc, gradio\n"
        "from pneumonia_hf.demo import serve as app\n"
        "tell = lambda *_, **options: print(gc.isenabled(), gc.get_freeze_count())\n"
        "gradio.Blocks.launch = tell\n"
        "app.main()\n"
        "print(gc.isenabled(), gc.get_freeze_count())\n"
    )
    done = run_fork(program, log=tmp_path / "log", GRADIO_TEMP_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout
    during, after = (line.split() for line in done.stdout.splitlines()[-2:])
    assert during[0] == after[0] == "True"
    assert int(during[1]) > 100_000  # so that no request waits while it is walked through
    assert after[1] == "0"  # or Python reports all of it as leaked when it ends
    assert not list(tmp_path.glob("xrays-*"))  # the folder of uploads


def test_the_card_of_a_pinned_model_is_on_the_hub_without_its_revision():
    from pneumonia_hf.demo.app import _list_links

    links = _list_links(SimpleNamespace(name="me/NAME@0123abcd"))
    assert 'href="https://huggingface.co/me/NAME"' in links
