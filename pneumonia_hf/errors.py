"""The errors that are a user's to mend: one sentence each, never a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right; its text says what is wrong and what to do.

    Scripts print the text and exit with status 2; the app shows it in the page, and a notebook
    below the cell.
    """

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in the place of a traceback."""
        return [f"error: {self}"]


class XrayError(UserError, ValueError):
    """A file or byte string that cannot be read as one X-ray image."""


class Stopped(BaseException):
    """The process was asked to end (SIGTERM), and did; what it says is a sentence for the user.

    Like KeyboardInterrupt it is no Exception: nobody who catches errors may swallow it.
    """
