"""Do attribution maps point at disease? Radiologists' boxes and simulated opacities know where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pneumonia_hf.data.boxes import BOXES
from pneumonia_hf.inference.attribution_methods import enlarge
from pneumonia_hf.statistics.intervals import Interval, bootstrap, draw_patients

if TYPE_CHECKING:
    from PIL import Image

SIDE = 112  # places a side of the raster on which maps and masks are compared
PHANTOM = "phantom"
BEGINNINGS = {
    BOXES: "Its maximum lies in the radiologists' boxes in {} of {} images",
    PHANTOM: "Its greatest rise lies in the simulated opacity in {} of {} films",
}
DIAMETERS = (50.0, 80.0)  # mm, of the simulated opacities in each zone of the lungs
FEWEST = 10  # images, below which a truth decides nothing


@dataclass(frozen=True)
class MarkedImage:
    """An image, and where its disease is."""

    image: Image.Image
    mask: np.ndarray | None  # bool [SIDE, SIDE]; None: not known
    patient: str


@dataclass(frozen=True)
class Location:
    """Where the maps of a method lie: means over images, with intervals over patients."""

    hits: Interval  # share of the images whose highest place lies inside
    mass: Interval  # share of the positive attribution that lies inside
    hits_gain: Interval  # the hits less those of the fixed map


@dataclass(frozen=True)
class Truth:
    """The masks of some images, with what maps reach that have not seen the image."""

    source: str  # BOXES or PHANTOM
    images: int
    patients: int
    area: Interval  # share of the image that is inside: both numbers of a map without knowledge
    # Of the mean of the other patients' masks, the same for all images: it knows where disease is
    # usual, and nothing of the image.
    fixed_hits: Interval
    fixed_mass: Interval
    methods: dict[str, Location]

    def describe(self, method: str) -> str:
        """Return how often a method hits, as a sentence."""
        hits, fixed, chance = (
            f"{one.value * self.images:.0f}"
            for one in (self.methods[method].hits, self.fixed_hits, self.area)
        )
        beginning = BEGINNINGS[self.source].format(hits, self.images)
        return f"{beginning}; a fixed map of the lungs hits {fixed}, chance {chance}."


def simulate_opacities() -> list[MarkedImage]:
    """Return the phantom's normal film, and films with an opacity in each zone, of each diameter.

    Nothing but the opacity differs between the films.
    """
    from pneumonia_hf.imaging.phantom import ZONES, Opacity, simulate

    films = [MarkedImage(simulate()[0], None, "normal")]
    for zone, place in ZONES.items():
        for number, diameter in enumerate(DIAMETERS):
            image, found = simulate([Opacity(place, diameter, seed=number)])
            rows, columns = (
                ((np.arange(SIDE) + 0.5) / SIDE * side).astype(int) for side in found.shape
            )
            films.append(MarkedImage(image, found[np.ix_(rows, columns)], f"{zone} {diameter:g}"))
    return films


def locate(values: Tensor, mask: np.ndarray) -> tuple[float, float]:
    """Return whether the highest place of a map [h, w] lies in a mask, and its share of mass."""
    row, column = divmod(int(values.argmax()), values.shape[1])
    # The centre of a coarse place: enlarged, one at the border would be highest at the edge.
    centre = (
        int((row + 0.5) / values.shape[0] * SIDE),
        int((column + 0.5) / values.shape[1] * SIDE),
    )
    positive = enlarge(values, (SIDE, SIDE)).clamp(min=0).cpu().numpy()
    total = float(positive.sum())
    if total == 0:  # nothing in this image speaks for pneumonia
        return 0.0, 0.0
    return float(mask[centre]), float(positive[mask].sum() / total)


def compare_with_truth(
    source: str,
    images: Sequence[MarkedImage],
    found: Mapping[str, np.ndarray],
    resamples: int = 1000,
) -> Truth:
    """Return how maps do against masks.

    Args:
        source: BOXES or PHANTOM.
        images: with masks, of at least two patients.
        found: what `locate` returned for each image, by method: [N, 2].
        resamples: of the bootstrap over patients.
    """
    masks = np.stack([one.mask for one in images])
    patients = np.array([one.patient for one in images])
    others = [masks[patients != one.patient].mean(axis=0) for one in images]
    fixed = np.array(
        [locate(torch.from_numpy(one), mask) for one, mask in zip(others, masks, strict=True)]
    )
    draws = list(draw_patients(np.zeros(len(masks), int), patients, resamples))

    def measure(table: np.ndarray, other: np.ndarray) -> list[Interval]:
        return bootstrap(
            lambda rows: [table[rows, 0] == 1, table[rows, 1].mean(), other[rows].mean()],
            len(table),
            draws,
        )

    methods = {
        name: Location(*measure(table, (table - fixed)[:, 0])) for name, table in found.items()
    }
    hits, mass, area = measure(fixed, masks.mean(axis=(1, 2)))
    return Truth(source, len(masks), len(set(patients)), area, hits, mass, methods)
