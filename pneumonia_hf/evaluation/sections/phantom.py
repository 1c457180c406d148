"""Section: whether the score answers to simulated opacities in the lungs, and only to those."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pneumonia_hf.evaluation.context import Evaluation
from pneumonia_hf.imaging.phantom import OUTSIDE, ZONES, Opacity, simulate
from pneumonia_hf.reporting.drawing import COLOUR, MARK, OTHER_COLOUR
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.log_odds import to_logit, to_probability

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from pneumonia_hf.inference.predictor import Predictor

DIAMETERS = (20, 30, 45, 60, 80)  # mm
USUAL = 60  # mm, of the control, of several opacities, and of those that must not be refused
HALF = 0.5  # the density of a fainter opacity of USUAL
SEEDS = (0, 1)  # of noise and edges
LARGEST_SHARE = 0.5  # of the rise inside the lungs: a control that rises more fails
NEVER_CALLED = f"No single opacity of up to {max(DIAMETERS)} mm is called PNEUMONIA."
NORMAL, BESIDE = "normal", "beside the lungs"
SEVERAL = {
    "2 opacities": ("right lower", "left lower"),
    "3 opacities": ("right lower", "left lower", "right upper"),
    "6 opacities": tuple(ZONES),
}
ZONE_COLOURS = {"upper": OTHER_COLOUR, "middle": COLOUR, "lower": MARK}


@dataclass(frozen=True)
class Case:
    """A film of the phantom, and what the model says of it."""

    name: str  # a zone, a key of SEVERAL, NORMAL or BESIDE
    diameter: float  # mm
    density: float
    seed: int
    log_odds: float = float("nan")
    rise: float = float("nan")  # of the log odds, above the normal film of the same seed


@dataclass(frozen=True)
class Rise:
    """How much opacities of USUAL and density 1 raise the log odds, over places and seeds."""

    mean: float
    sd: float
    films: int


@dataclass(frozen=True)
class Phantom:
    """What a model says of the phantom."""

    cases: tuple[Case, ...]
    threshold: float  # log odds
    inside: Rise
    beside: Rise
    decisions: dict[str, str]  # on the normal film and on an opacity of USUAL in each zone

    @property
    def normal(self) -> float:
        """The log odds of the normal film."""
        return float(np.mean([one.log_odds for one in self.cases if one.name == NORMAL]))

    def mean_rise(self, name: str, diameter: float, density: float = 1) -> float | None:
        """Return the mean rise of the films of a kind, if there are any."""
        rises = list_rises(self.cases, [name], diameter, density)
        return float(np.mean(rises)) if rises else None

    def find_smallest(self, *zones: str) -> float | None:
        """Return the diameter of the smallest single opacity that is called, if any."""
        called = [
            one.diameter
            for one in self.cases
            if one.name in zones and one.density == 1 and one.log_odds >= self.threshold
        ]
        return min(called, default=None)

    @property
    def failures(self) -> list[str]:
        """What the model does wrong, a sentence each."""
        refused = sum(one == "REFUSED" for one in self.decisions.values())
        texts = {
            "The normal film is called PNEUMONIA.": self.normal >= self.threshold,
            f"REFUSED as no chest X-ray: {refused} of {len(self.decisions)} films.": refused,
            NEVER_CALLED: self.find_smallest(*ZONES) is None,
            f"Opacities of {USUAL} mm in the lungs raise the log odds by {_to_text(self.inside)}, "
            f"and the same opacities beside the lungs by {_to_text(self.beside)}.": (
                self.beside.mean > LARGEST_SHARE * self.inside.mean or self.inside.mean <= 0
            ),
        }
        return [text for text, is_wrong in texts.items() if is_wrong]


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return what the model says of the phantom, which is the same for all data."""
    return describe(measure_phantom(evaluation.predictor))


def measure_phantom(predictor: Predictor) -> Phantom:
    """Return the predictor's log odds and decisions on the films of the phantom."""
    films = make_films()
    scores = predictor.log_odds([image for _, image in films]).tolist()
    pairs = [(case, score) for (case, _), score in zip(films, scores, strict=True)]
    normal = {case.seed: score for case, score in pairs if case.name == NORMAL}
    cases = tuple(
        replace(case, log_odds=score, rise=score - normal[case.seed]) for case, score in pairs
    )
    usual = {
        case.name: image
        for case, image in films
        if case.name == NORMAL
        or (case.name in ZONES and (case.diameter, case.density) == (USUAL, 1))
    }
    decisions = [one.decision for one in predictor.predict_all(list(usual.values()))]
    rises = (list_rises(cases, names) for names in (ZONES, [BESIDE]))
    return Phantom(
        cases,
        float(to_logit(np.float64(predictor.operating_point.threshold))),
        *(Rise(float(np.mean(of)), float(np.std(of, ddof=1)), len(of)) for of in rises),
        dict(zip(usual, decisions, strict=True)),
    )


def list_rises(
    cases: Sequence[Case], names: Collection[str], diameter: float = USUAL, density: float = 1
) -> list[float]:
    """Return the rises of the films with these names, and opacities of one size and density."""
    return [
        one.rise
        for one in cases
        if one.name in names and (one.diameter, one.density) == (diameter, density)
    ]


@cache
def make_films() -> tuple[tuple[Case, Image.Image], ...]:
    """Return each film without its score, and its image."""
    return tuple((case, simulate(some, seed=case.seed)[0]) for case, some in list_opacities())


def list_opacities() -> Iterator[tuple[Case, list[Opacity]]]:
    """Yield each film without its score, and the opacities in it."""
    for seed in SEEDS:
        yield Case(NORMAL, 0, 1, seed), []
    kinds = [(diameter, 1, 0) for diameter in DIAMETERS]
    kinds += [(USUAL, 1, seed) for seed in SEEDS[1:]] + [(USUAL, HALF, 0)]
    for zone, place in ZONES.items():
        for diameter, density, seed in kinds:
            opacity = Opacity(place, diameter, density, seed=seed)
            yield Case(zone, diameter, density, seed), [opacity]
    for seed in SEEDS:
        for name, zones in SEVERAL.items():
            several = [Opacity(ZONES[zone], USUAL, seed=seed) for zone in zones]
            yield Case(name, USUAL, 1, seed), several
        for place in OUTSIDE.values():
            control = Opacity(place, USUAL, outside=True, seed=seed)
            yield Case(BESIDE, USUAL, 1, seed), [control]


def _to_text(rise: Rise) -> str:
    return f"{rise.mean:.2f} (SD {rise.sd:.2f})"


def describe(found: Phantom) -> Section:
    """Return the section of a measured phantom."""
    smallest = found.find_smallest(*ZONES)
    called = NEVER_CALLED if smallest is None else f"One of {smallest:g} mm is called PNEUMONIA."
    refused = [name for name, decision in found.decisions.items() if decision == "REFUSED"]
    body = (
        f"**Opacities of {USUAL} mm in the lungs raise the log odds by {_to_text(found.inside)}, "
        f"the same opacities beside the lungs by {_to_text(found.beside)}. {called}** SD is the "
        f"standard deviation over {len(ZONES)} zones or {len(OUTSIDE)} places, each with "
        f"{len(SEEDS)} seeds of the noise and of the opacity's edge.",
        "The films are simulated: projections of the CT of one patient, to which opacities of "
        "known place, size and density are added; normal means that nothing is added. No model is "
        "trained on them. They show whether the score answers to opacities, not how often it is "
        "right. Where it rises for those beside the lungs too, it does not come from the lungs "
        "alone.",
        f"The normal film has a probability of {to_probability(found.normal):.3f} (log odds "
        f"{found.normal:.2f}; the threshold lies at {found.threshold:.2f}). Of it and the "
        f"{len(ZONES)} films with an opacity of {USUAL} mm, "
        f"{', '.join(refused) or 'none'} {'are' if len(refused) > 1 else 'is'} refused. Rise of "
        f"the log odds above the normal film:",
        Table(
            [
                "opacity",
                *(f"{diameter} mm" for diameter in DIAMETERS),
                f"{USUAL} mm, half density",
                "smallest called",
            ],
            [_to_row(found, name) for name in (*ZONES, *SEVERAL, BESIDE)],
        ),
        Figure("phantom", lambda: draw_phantom(found), is_wide=True),
    )
    numbers = asdict(found) | {"smallest_called": smallest, "failures": found.failures}
    return Section("Phantom", body, {"phantom": numbers})


def _to_row(found: Phantom, name: str) -> list[str]:
    kinds = [*((one, 1) for one in DIAMETERS), (USUAL, HALF)]
    rises = [found.mean_rise(name, *kind) for kind in kinds]
    cells = ["" if one is None else f"{one:+.2f}" for one in rises]
    smallest = found.find_smallest(name)
    return [name, *cells, "none" if smallest is None else f"{smallest:g} mm"]


def draw_phantom(found: Phantom) -> Drawing:
    """Return log odds by diameter in each zone, and the rises beside those of the control."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    dose, control = figure.subplots(1, 2, width_ratios=[3, 2])
    for zone in ZONES:
        side, level = zone.split()
        rises = [found.mean_rise(zone, diameter) for diameter in DIAMETERS]
        dose.plot(
            [0, *DIAMETERS],
            found.normal + np.array([0, *rises]),
            "o-" if side == "right" else "s--",
            color=ZONE_COLOURS[level],
            label=zone,
            markersize=4,
        )
    dose.axhline(found.threshold, color=OTHER_COLOUR, linestyle=":", label="threshold")
    dose.set(xlabel="diameter of one opacity, mm", ylabel="log odds")
    # Outside: to look for the best place takes over a second on a busy machine, and then warns.
    dose.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    for place, (names, colour) in enumerate(((ZONES, COLOUR), ([BESIDE], MARK))):
        rises = list_rises(found.cases, names)
        spread = np.linspace(-0.15, 0.15, len(rises))
        control.plot(place + spread, rises, "o", color=colour, markersize=4)
        control.plot([place - 0.25, place + 0.25], [np.mean(rises)] * 2, color=colour)
    control.axhline(0, color=OTHER_COLOUR, linestyle=":")
    control.set_xticks([0, 1], ["in the lungs", BESIDE])
    control.set(ylabel="rise of the log odds", title=f"Opacities of {USUAL} mm", xlim=(-0.5, 1.5))
    for axes in (dose, control):
        axes.grid(axis="y", alpha=0.3)
    return figure
