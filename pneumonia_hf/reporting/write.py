"""A Page -> Markdown, HTML, JSON and figures in one folder, completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pneumonia_hf.errors import UserError
from pneumonia_hf.files import write_json
from pneumonia_hf.reporting.page import Figure, Page, to_html, to_markdown


def check_folder(folder: Path, overwrite: bool, files: Sequence[str]) -> None:
    """Raise a UserError if `folder` lies in a file, or one of `files` in it would be replaced."""
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file; --output_dir takes a folder.")
    existing = [name for name in files if (folder / name).exists()]
    if existing and not overwrite:
        raise UserError(
            f"{folder} holds {existing[0]}; choose another --output_dir, or give --overwrite."
        )


def write_page(
    page: Page,
    folder: Path,
    name: str = "report",
    older: Sequence[str] = (),
    write_more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write NAME.md, NAME.html, NAME.json and the figures of a report into `folder`.

    Args:
        page: the report.
        folder: is made if it does not exist.
        name: of the files.
        older: files of an older report that are removed if the new one lacks them.
        write_more: writes further files of the report into the folder that it is given.

    Raises:
        UserError: the folder cannot be made.
    """
    # Within the folder, which may be a mount point: files move within one file system alone.
    unfinished = folder / ".report.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); choose another --output_dir."
        ) from error
    try:
        files = save_figures(page.figures, unfinished)
        write_more(unfinished)
        (unfinished / f"{name}.md").write_text(to_markdown(page, files), encoding="utf-8")
        (unfinished / f"{name}.html").write_text(to_html(page, files), encoding="utf-8")
        write_json(unfinished / f"{name}.json", page.numbers)
        made = [file for file in unfinished.rglob("*") if file.is_file()]
        # The JSON file comes last: with it, the report is complete.
        for file in sorted(made, key=lambda file: file.suffix == ".json"):
            place = folder / file.relative_to(unfinished)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
        for file in {*older} - {file.relative_to(unfinished).as_posix() for file in made}:
            (folder / file).unlink(missing_ok=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if there is nothing in it, it was made above


def save_figures(figures: Sequence[Figure], folder: Path) -> dict[str, Path]:
    """Write figures as PNG, and those without X-rays as SVG too; return the file for a page."""
    import matplotlib

    files = {}
    # Without dates, versions and random ids, so that the same numbers give the same files.
    with matplotlib.rc_context({"svg.hashsalt": "pneumonia-hf", "svg.fonttype": "none"}):
        for figure in figures:
            drawing = figure.draw()
            files[figure.name] = file = folder / f"{figure.name}.png"
            file.parent.mkdir(exist_ok=True)
            box = None if figure.has_xrays else "tight"
            drawing.savefig(file, dpi=110, bbox_inches=box, metadata={"Software": None})
            if not figure.has_xrays:
                files[figure.name] = file = file.with_suffix(".svg")
                drawing.savefig(file, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return files
