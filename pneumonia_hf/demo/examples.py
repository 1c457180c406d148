"""Examples: what the page offers to a visitor without an X-ray, or a hospital's own images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.demo.limits import read_setting
from pneumonia_hf.demo.page_files import PAGE
from pneumonia_hf.errors import SettingError, UserError
from pneumonia_hf.imaging import phantom
from pneumonia_hf.imaging.phantom import ZONES, Opacity, simulate, simulate_side_view
from pneumonia_hf.imaging.read import is_image_name, to_xray
from pneumonia_hf.imaging.xray import Xray

if TYPE_CHECKING:
    from pneumonia_hf.demo.engine import Engine

LOG = logging.getLogger(__name__)
MOST = 12  # of a hospital's own
REAL = PAGE / "rg1.png"  # its source is in NOTICE
# A pneumonia of both lungs that is bright enough to be seen at the size of a thumbnail.
PNEUMONIA = tuple(
    Opacity(ZONES[zone], 100, seed=seed)
    for seed, zone in enumerate(("right middle", "right lower", "left middle"))
)


@dataclass(frozen=True)
class Example:
    """An X-ray that is analysed at a click."""

    title: str
    note: str
    open: Callable[[], Xray]


def find_folder() -> Path | None:
    """Return the folder that EXAMPLES names; None without one.

    Raises:
        SettingError: it is no folder.
    """
    if (text := read_setting("EXAMPLES")) is None:
        return None
    if not Path(text).is_dir():
        raise SettingError(f"EXAMPLES is {text!r}, which is no folder of images.")
    return Path(text)


def list_examples(engine: Engine, folder: Path | None) -> list[Example]:
    """Return the images of a folder, sorted by name, at most MOST; without one, those built in."""
    if folder is None:
        return [
            Example("No pneumonia", "simulated patient", _simulate_patient),
            Example("Pneumonia", "simulated patient", partial(_simulate_patient, PNEUMONIA)),
            Example("Another disease", "real X-ray, round masses", partial(engine.read, str(REAL))),
            Example("Side view", "simulated, not frontal", lambda: to_xray(simulate_side_view())),
        ]
    found: list[Example] = []
    for path in sorted(folder.iterdir()):
        if len(found) == MOST:
            LOG.warning("EXAMPLES holds more than %d images; the others are left out.", MOST)
            break
        if path.name.startswith(".") or is_image_name(path.name) is False:
            continue
        try:
            engine.read(str(path))
        except UserError as error:
            LOG.warning("Left an example out: %s", error)
            continue
        found.append(Example(path.stem, "", partial(engine.read, str(path))))
    return found


@lru_cache(maxsize=8)  # the map is of the same film as the probability
def simulate_opacity(place: tuple[float, float], diameter: float) -> tuple[Xray, bool]:
    """Return the simulated patient with an opacity, and whether its centre lies in a lung.

    Beside the lungs it is a control: the same ball in the rays that meet no lung.
    """
    inside = is_in_lung(place)
    image, _ = simulate([Opacity(place, diameter, outside=not inside)])
    return to_xray(image), inside


def is_in_lung(place: tuple[float, float]) -> bool:
    """Return whether a place, as shares of the film from its left and top, lies in a lung."""
    lung = _find_lungs()
    height, width = lung.shape
    x, y = (
        int(min(share * side, side - 1)) for share, side in zip(place, (width, height), strict=True)
    )
    return bool(lung[y, x])


def film_size() -> tuple[float, float]:
    """Return the width and height of the simulated film in mm."""
    height, width = _find_lungs().shape
    pixel = float(phantom.load()["pixel"])
    return width * pixel, height * pixel


@cache
def _find_lungs() -> np.ndarray:
    return phantom.lung_mask()


def _simulate_patient(opacities: tuple[Opacity, ...] = ()) -> Xray:
    return to_xray(simulate(opacities)[0])
