"""Files: JSON and text written whole or not at all, paths, locks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pneumonia_hf.errors import UserError


def read_json(path: Path, otherwise: Any) -> Any:
    """Return what a JSON file holds, or `otherwise` where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise
    except ValueError as error:  # also of bytes that are no UTF-8
        raise UserError(f"{path} is damaged and cannot be read as JSON; restore it.") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that people can read; NaN becomes null."""
    replace_text(path, json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: a full disk leaves what was there."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
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


def markdown_table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown, without a final line break; `|` in a cell is escaped."""

    def line(cells: Sequence[Any]) -> str:
        return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])
