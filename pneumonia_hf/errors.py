"""Errors that the user can correct: one sentence each, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can correct; its text says what is wrong and what to do.

    Scripts print the text and exit with status 2; the app and notebooks show it.
    """

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of a traceback."""
        return [f"error: {self}"]


class DataError(UserError):
    """A data set that cannot be used."""


class ModelError(UserError):
    """A model that cannot be loaded, or that cannot do what is asked of it."""


class HubError(UserError):
    """The Hub, which refuses, or is out of reach."""


class SettingError(UserError):
    """A flag, key of a recipe or environment variable that is unknown or has a wrong value."""


class XrayError(UserError, ValueError):
    """A file or byte string that cannot be read as one X-ray image."""


class Stopped(BaseException):
    """The process was ended by a signal (SIGTERM); its text is a sentence for the user.

    Like KeyboardInterrupt, it is not an Exception, so that no handler of errors swallows it.
    """
