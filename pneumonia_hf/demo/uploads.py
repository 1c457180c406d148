"""Delete uploads after a while, however they came."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from threading import Thread


def delete_regularly(folder: Path, seconds: int) -> None:
    """Start a thread that calls `delete_old` four times within `seconds`, until the process ends.

    gradio itself deletes what comes through its page, but neither images of MCP clients nor empty
    files and folders.
    """

    def run() -> None:
        while True:
            time.sleep(max(1.0, seconds / 4))
            delete_old(folder, seconds)

    Thread(target=run, name="delete uploads", daemon=True).start()


def delete_old(folder: Path, seconds: int) -> None:
    """Delete the files and empty folders in `folder` that were last changed `seconds` ago."""
    before = time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folders
        with contextlib.suppress(OSError):  # gone already, or a folder with younger files
            if path.lstat().st_mtime < before:
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink()
