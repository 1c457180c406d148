"""The Space: serve the model named by MODEL_ID, or the default model."""

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Load the model and serve the app until it is stopped."""
    from pneumonia_hf.memory import keep_freed_memory

    keep_freed_memory(arenas=2)
    gc.disable()  # collections take a quarter of the start, and imports leave little garbage
    # gradio reads this at import. The app sends no usage data.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # uploads are deleted then, too
    # A folder of its own: what is in it may be deleted.
    parent = os.environ.get("GRADIO_TEMP_DIR") or None
    if parent:
        os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="xrays-", dir=parent, ignore_cleanup_errors=True
    ) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        serve(Path(uploads))


def serve(uploads: Path) -> None:
    """Serve the app, with `uploads` as gradio's folder for them."""
    from pneumonia_hf.errors import UserError

    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"The port is {port!r}; give a number from 1 to 65535.")
    from PIL import Image

    from pneumonia_hf.demo.app import build_demo, launch_options
    from pneumonia_hf.demo.limits import Limits
    from pneumonia_hf.demo.uploads import delete_regularly
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    limits = Limits.from_environment()
    login = os.environ.get("APP_LOGIN") or None
    if login is not None and (":" not in login or len(login) < 10):
        raise UserError("APP_LOGIN must be user:password, of ten characters or more.")
    model = os.environ.get("MODEL_ID") or DEFAULT_MODEL
    backend = os.environ.get("BACKEND") or "torch"
    predictor = Predictor.from_pretrained(
        model, os.environ.get("MODEL_REVISION") or None, backend=backend
    )
    predictor.predict(Image.new("L", (64, 64)))  # the first visitor does not wait for set-up
    demo = build_demo(predictor, limits)
    delete_regularly(uploads, limits.kept_seconds)
    gc.collect()  # what was garbage must not be kept
    gc.freeze()
    gc.enable()
    try:
        demo.launch(**launch_options(limits, login), mcp_server=True)
    except OSError as error:
        if "empty port" not in str(error):
            raise
        raise UserError(
            f"Port {port} is in use; choose another: make demo PORT=8000, "
            f"or GRADIO_SERVER_PORT=8000 python app.py."
        ) from error
    finally:
        gc.unfreeze()  # or libraries report at the exit that their objects are left


if __name__ == "__main__":
    from pneumonia_hf.cli import run_script

    run_script(main)
