"""Steps: results of slow steps, kept on disk until a report is complete."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.files import replace_text, unfinished_file

KEY_FILE = "key.json"


class Steps:
    """What an interrupted evaluation has computed so far, for the next one with the same inputs.

    Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None = None, key: Any = None) -> None:
        """Take the folder of earlier results; those of another `key` (JSON) are deleted."""
        self.folder = folder
        self.key = json.dumps(key, sort_keys=True)
        if folder is None or not folder.exists():
            return
        file = folder / KEY_FILE
        if not (file.exists() and file.read_text(encoding="utf-8") == self.key):
            shutil.rmtree(folder)

    def run(self, name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the arrays of a step, from an earlier evaluation or by computing them."""
        if self.folder is None:
            return compute()
        file = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"
        if file.exists():
            with np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        found = compute()
        if not self.folder.exists():  # not before there is a result: errors leave nothing behind
            try:
                self.folder.mkdir(parents=True)
                replace_text(self.folder / KEY_FILE, self.key)
            except OSError as error:
                raise UserError(
                    f"{self.folder.parent} cannot be written ({error.strerror}); choose another "
                    f"--output_dir."
                ) from error
        with unfinished_file(file) as unfinished, unfinished.open("wb") as opened:
            np.savez(opened, **found)
        return found

    def remove(self) -> None:
        """Delete the results: the report is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
