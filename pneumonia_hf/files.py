"""Files that are written completely or not at all, JSON, paths, and the one file lock."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pneumonia_hf.errors import UserError

logger = logging.getLogger(__name__)

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # of network disks


def read_json(path: Path, otherwise: Any) -> Any:
    """Return what a JSON file holds, or `otherwise` where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise
    except ValueError as error:  # also of bytes that are no UTF-8
        raise UserError(f"{path} is damaged and cannot be read as JSON; restore it.") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that people can read; NaN becomes null."""
    replace_text(path, json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    with unfinished_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def unfinished_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename the file written there if all went well."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def flush_to_disk(files: Iterable[Path]) -> None:
    """Return when the disk itself holds what was written to `files`."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def hold_lock(path: Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold a file lock; the system frees it when the process ends, however it ends.

    Args:
        path: the lock file; it is made, and stays.
        busy: what to say if another process holds the lock.
        wait: print `busy` and wait, instead of raising it.

    Raises:
        UserError: another process holds the lock, and `wait` is off.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise UserError(busy) from error
        print(busy, file=sys.stderr, flush=True)
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        logger.warning("The disk of %s has no locks: run only one process there.", path.parent)
    try:
        yield
    finally:
        lock.release()


def without_nan(content: Any) -> Any:
    """Return JSON content with null for each number that is not finite."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def expand(path: str) -> Path:
    """Return a path with `~` put in place.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} begins with a user that does not exist.") from error
