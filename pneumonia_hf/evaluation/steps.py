"""Steps: results of slow steps, kept on disk until a report is complete, and the time left."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.files import replace_text, unfinished_file
from pneumonia_hf.inference.read_ahead import CHUNK

if TYPE_CHECKING:
    from accelerate import PartialState
    from tqdm.auto import tqdm

KEY_FILE = "key.json"
Result = TypeVar("Result")


class Steps:
    """What an interrupted evaluation has computed so far, for the next one with the same inputs.

    Without a folder nothing is kept. The time left is shown in a line of the terminal: the work is
    counted in forward passes, and what is done so far says how long one takes.

    Processes of a launcher go through the same steps together. `share` lets each compute a part;
    the main process alone keeps results and shows the time.
    """

    def __init__(
        self, folder: Path | None = None, key: Any = None, state: PartialState | None = None
    ) -> None:
        """Take the folder of earlier results; those of another `key` (JSON) are deleted.

        `state` is of a launcher's processes, if there are several.
        """
        self.is_shared = state is not None
        self.is_main = state is None or state.is_main_process
        folder = folder if self.is_main else None
        self.folder = folder
        self.key = json.dumps(key, sort_keys=True)
        self.bar: tqdm | None = None
        if folder is None or not folder.exists():
            return
        file = folder / KEY_FILE
        if not (file.exists() and file.read_text(encoding="utf-8") == self.key):
            shutil.rmtree(folder)

    def expect(self, passes: int) -> None:
        """Show from now on how long `passes` forward passes will take."""
        from tqdm.auto import tqdm

        shape = "{desc}: {percentage:.0f}%, {elapsed} so far, about {remaining} left"
        # smoothing=0: the time left follows from the mean of all that is done.
        self.bar = tqdm(
            total=passes, desc="Report", bar_format=shape, leave=False, smoothing=0,
            disable=not self.is_main,
        )  # fmt: skip

    def advance(self, passes: int, name: str = "") -> None:
        """Count `passes` as done."""
        if self.bar is not None:
            self.bar.set_description_str(f"Report, {name}" if name else "Report", refresh=False)
            self.bar.update(passes)

    def run(
        self, name: str, compute: Callable[[], dict[str, np.ndarray]], passes: int = 0
    ) -> dict[str, np.ndarray]:
        """Return the arrays of a step, from an earlier evaluation or by computing them.

        `passes` of the network, about, are needed to compute them.
        """
        file = self._file_of(name)
        if self.is_shared:
            from pneumonia_hf.distributed import broadcast_from_main

            stored = broadcast_from_main(_load, file)
        else:
            stored = _load(file)
        if stored is not None:
            if self.bar is not None:
                self.bar.total -= passes  # it takes no time, and says nothing of the rest
            return stored
        found = compute()
        self.advance(passes, name)
        if file is not None:
            self._keep(file, found)
        return found

    def share(
        self, function: Callable[[Sequence[int]], Iterable[Result]], count: int
    ) -> list[Result]:
        """Return `function`'s result for each of `count` numbers; processes share the numbers.

        CHUNK neighbours stay together: images in other batches would get other rounding errors.
        """
        if not self.is_shared:
            return list(function(range(count)))
        from pneumonia_hf.distributed import share_out

        return share_out(function, count, CHUNK)

    def _file_of(self, name: str) -> Path | None:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return None if self.folder is None else self.folder / f"{digest}.npz"

    def _keep(self, file: Path, found: dict[str, np.ndarray]) -> None:
        folder = file.parent
        if not folder.exists():  # not before there is a result: errors leave nothing behind
            try:
                folder.mkdir(parents=True)
                replace_text(folder / KEY_FILE, self.key)
            except OSError as error:
                raise UserError(
                    f"{folder.parent} cannot be written ({error.strerror}); choose another "
                    f"--output_dir."
                ) from error
        with unfinished_file(file) as unfinished, unfinished.open("wb") as opened:
            np.savez(opened, **found)

    def close(self) -> None:
        """Remove the line of the time left."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def remove(self) -> None:
        """Delete the results: the report is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _load(file: Path | None) -> dict[str, np.ndarray] | None:
    if file is None or not file.exists():
        return None
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)
