"""Limits of the app: what one visitor may ask of it, from environment variables."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from pneumonia_hf.errors import SettingError
from pneumonia_hf.imaging.read import MAX_PIXELS

BUSY = "The app is busy; try again in a minute."
ASSUMED_PREVALENCE = 0.5  # for which the probabilities of every model are calibrated


def read_setting(variable: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return an environment variable without blanks and quotes around it; None if that is nothing.

    Forms of web pages and env files add both.
    """
    text = environment.get(variable, "").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text or None


@dataclass(frozen=True)
class Limits:
    """Bounds of the app; docs/space.md says what each means.

    The environment variable of each is MAX_ and its name; of the last KEPT_SECONDS.
    """

    upload_mb: int = 20
    megapixels: int = MAX_PIXELS // 10**6
    batch: int = 200
    unzipped_mb: int = 400
    queue: int = 64
    requests: int = 4
    seconds: int = 60
    sessions: int = 100
    kept_seconds: int = 120

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """Return the limits that the environment variables give, and defaults for others.

        Raises:
            SettingError: a value is not a positive integer.
        """
        given = {}
        for one in fields(cls):
            variable = one.name.upper()
            if one.name != "kept_seconds":
                variable = f"MAX_{variable}"
            if (text := read_setting(variable, environment)) is None:
                continue
            if not (text.isascii() and text.isdigit() and int(text) > 0):
                raise SettingError(f"{variable} is {text!r}; give a positive whole number.")
            given[one.name] = int(text)
        return cls(**given)


def read_prevalence(environment: Mapping[str, str] = os.environ) -> float:
    """Return PREVALENCE: the share of X-rays with pneumonia that the page assumes.

    Raises:
        SettingError: it is no share between 0 and 1.
    """
    text = read_setting("PREVALENCE", environment) or str(ASSUMED_PREVALENCE)
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise SettingError(
            f"PREVALENCE is {text!r}; give the share of your X-rays that show pneumonia, between 0 "
            f"and 1, such as 0.1."
        )
    return share
