"""The files of the page: HTML, CSS and JavaScript."""

from pathlib import Path

PAGE = Path(__file__).with_name("page")


def read_page(*names: str) -> str:
    """Return the text of some files, one after the other."""
    return "\n".join((PAGE / name).read_text(encoding="utf-8") for name in names)
