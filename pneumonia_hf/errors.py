"""The errors that are a user's to mend: one sentence each, never a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right; its text says what is wrong and what to do.

    Scripts print the text and exit with status 2; the app shows it in the page.
    """


class XrayError(UserError, ValueError):
    """A file or byte string that cannot be read as one X-ray picture."""
