"""Errors that the user can correct: one sentence each, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can correct; its text says what is wrong and what to do.

    Scripts print the text and exit with status 2; the app and notebooks show it.
    """

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of a traceback."""
        return [f"error: {self}"]


class XrayError(UserError, ValueError):
    """A file or byte string that cannot be read as one X-ray image."""


class Stopped(BaseException):
    """The process was ended by a signal (SIGTERM); its text is a sentence for the user.

    Like KeyboardInterrupt, it is not an Exception, so that no handler of errors swallows it.
    """
