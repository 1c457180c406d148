"""The flags of a parser, for which argparse has no public name."""

from __future__ import annotations

from argparse import Action, ArgumentParser


def list_flags(parser: ArgumentParser) -> list[Action]:
    """Return the flags of a parser in their order."""
    return parser._actions
