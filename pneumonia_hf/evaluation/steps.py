"""Steps: results of slow steps, kept on disk until a report is complete."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia_hf.files import replace_text, unfinished_file

KEY_FILE = "key.json"


class Steps:
    """What an interrupted evaluation has computed so far, for the next one with the same inputs.

    Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None = None, key: Any = None) -> None:
        """Take the folder of earlier results; those of another `key` (JSON) are deleted."""
        self.folder = folder
        if folder is None:
            return
        text = json.dumps(key, sort_keys=True)
        file = folder / KEY_FILE
        if folder.exists() and not (file.exists() and file.read_text(encoding="utf-8") == text):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(file, text)

    def run(self, name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the arrays of a step, from an earlier evaluation or by computing them."""
        if self.folder is None:
            return compute()
        file = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"
        if file.exists():
            with np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        found = compute()
        with unfinished_file(file) as unfinished, unfinished.open("wb") as opened:
            np.savez(opened, **found)
        return found

    def remove(self) -> None:
        """Delete the results: the report is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
