"""Delete uploads after a while, however they came."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from threading import Thread

MOST_UPLOADING = 3600  # seconds after which an upload that has not ended is taken to be broken off


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
    """Delete files and empty folders in `folder`, `seconds` after they came.

    gradio writes the files of a request directly into `folder`, and moves each into a folder of
    its own when all have come: until then they have MOST_UPLOADING. Not st_mtime, which a move
    keeps.
    """
    now = time.time()
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folders
        with contextlib.suppress(OSError):  # gone already, or a folder with younger files
            is_folder = path.is_dir() and not path.is_symlink()
            is_uploading = path.parent == folder and not is_folder
            kept = max(seconds, MOST_UPLOADING) if is_uploading else seconds
            if path.lstat().st_ctime < now - kept:
                if is_folder:
                    path.rmdir()
                else:
                    path.unlink()
