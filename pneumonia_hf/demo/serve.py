"""Serve the app with the model named by MODEL_ID, or the default model: what a Space runs."""

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch


def main() -> None:
    """Load the model and serve the app until it is stopped."""
    from pneumonia_hf.errors import SettingError
    from pneumonia_hf.memory import keep_freed_memory

    if given := " ".join(sys.argv[1:]):
        raise SettingError(
            f"The app takes no arguments such as {given}; its settings are environment variables, "
            f"such as GRADIO_SERVER_PORT=7861 (docs/space.md lists them)."
        )

    keep_freed_memory(arenas=2)
    gc.disable()  # collections take a quarter of the start, and imports leave little garbage
    # gradio reads this at import. The app sends no usage data.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # uploads are deleted then, too
    with make_upload_folder() as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        serve(Path(uploads))


def make_upload_folder() -> tempfile.TemporaryDirectory:
    """Return a folder of its own: what is in it may be deleted."""
    from pneumonia_hf.demo.limits import read_setting
    from pneumonia_hf.errors import SettingError

    parent = read_setting("GRADIO_TEMP_DIR")
    try:
        if parent:
            os.makedirs(parent, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="xrays-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise SettingError(
            f"GRADIO_TEMP_DIR is {parent!r}, which is no folder for files ({error.strerror})."
        ) from error


def import_gradio() -> None:
    """Import gradio without its type stubs.

    It parses the source of each of its components and writes a stub beside it, unless it does not
    find the source: 2.1 of its 6.3 s of CPU.
    """
    with patch("inspect.getfile", side_effect=OSError):
        import gradio  # noqa: F401


def serve(uploads: Path) -> None:
    """Serve the app, with `uploads` as gradio's folder for them."""
    from pneumonia_hf.demo.limits import Limits, read_prevalence, read_setting
    from pneumonia_hf.errors import SettingError

    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):  # gradio reads them itself
        if value := read_setting(name):
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise SettingError(f"GRADIO_SERVER_PORT is {port!r}; give a number from 1 to 65535.")
    limits, prevalence = Limits.from_environment(), read_prevalence()
    login = read_setting("APP_LOGIN")
    if login is not None and (":" not in login or len(login) < 10):
        raise SettingError("APP_LOGIN must be user:password, of ten characters or more.")
    from PIL import Image

    import_gradio()
    from pneumonia_hf.demo.app import build_demo, launch_options
    from pneumonia_hf.demo.examples import find_folder
    from pneumonia_hf.demo.uploads import delete_regularly
    from pneumonia_hf.inference.backends import BACKENDS
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.labels import LABELS
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    examples = find_folder()
    model = read_setting("MODEL_ID") or DEFAULT_MODEL
    revision = read_setting("MODEL_REVISION")
    backend = read_setting("BACKEND") or "torch"
    if backend not in (backends := [*BACKENDS, "auto"]):
        raise SettingError(f"BACKEND is {backend!r}; choose from {backends}.")
    predictor = Predictor.from_pretrained(
        model,
        revision,
        positive_label=read_setting("POSITIVE_LABEL") or LABELS[1],
        backend=backend,
        flags=("MODEL_ID and MODEL_REVISION" if revision else "MODEL_ID", "POSITIVE_LABEL"),
    )
    predictor.predict(Image.new("L", (64, 64)))  # the first visitor does not wait for set-up
    demo = build_demo(predictor, limits, examples, prevalence)
    delete_regularly(uploads, limits.kept_seconds)
    gc.freeze()  # no collection walks through what stays, neither now nor in the first request
    gc.enable()
    try:
        demo.launch(**launch_options(limits, login), mcp_server=True)
    except OSError as error:
        if error.errno is not None:  # only gradio's own, for a port in use, has no number
            raise
        raise SettingError(
            f"Port {port} is in use; choose another: make demo PORT=8000, "
            f"or GRADIO_SERVER_PORT=8000 python app.py."
        ) from error
    finally:
        gc.unfreeze()  # what is never collected is reported as leaked when Python ends
