"""Films of the phantom: opacities are where and what they are said to be."""

import tomllib
from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image, ImageOps

from pneumonia_hf.imaging.phantom import (
    FILE,
    OUTSIDE,
    SIDE_ANGLES,
    SOURCE,
    ZONES,
    Opacity,
    load,
    lung_mask,
    lung_thickness,
    opacity_depth,
    simulate,
    simulate_side_view,
)

BALL = Opacity(ZONES["right middle"], 60)
CONTROLS = [Opacity(place, 60, outside=True) for place in OUTSIDE.values()]


def develop(*opacities: Opacity, **settings) -> np.ndarray:
    return np.asarray(simulate(opacities, **settings)[0]).astype(int)


def sum_change(*opacities: Opacity) -> int:
    return int(np.sum(develop(*opacities, noise=0) - develop(noise=0)))


@pytest.mark.parametrize("zone", ZONES)
def test_a_larger_or_denser_opacity_attenuates_more(zone):
    balls = [Opacity(ZONES[zone], diameter) for diameter in (0, 20, 30, 45, 60, 80)]
    depths = [float(opacity_depth(one).sum()) for one in balls]
    assert depths[0] == 0 and np.all(np.diff(depths) > 0)
    changes = [sum_change(replace(balls[4], density=density)) for density in (0.3, 0.6, 1)]
    assert 0 < changes[0] < changes[1] < changes[2]
    assert sum_change(balls[4], balls[2]) > changes[2]


def test_an_opacity_is_a_ball_within_the_lungs():
    for place in ZONES.values():
        depth = opacity_depth(Opacity(place, 80))
        assert np.all(depth <= np.minimum(lung_thickness(), 80)) and depth.max() > 60
    height, width = depth.shape
    area = np.sum(opacity_depth(BALL) > 0) * float(load()["pixel"]) ** 2
    assert area == pytest.approx(np.pi * 30**2, rel=0.3)
    rows, columns = np.nonzero(opacity_depth(BALL))
    centre = columns.mean() / width, rows.mean() / height
    assert centre == pytest.approx(BALL.place, abs=0.03)


@pytest.mark.parametrize("opacity", [BALL, CONTROLS[0], CONTROLS[-1]], ids=str)
def test_the_mask_is_where_the_image_changes(opacity):
    image, mask = simulate([opacity])
    assert image.mode == "L" and mask.shape == (image.height, image.width)
    changed = develop(opacity, noise=0) != develop(noise=0)
    assert not np.any(changed & ~mask)
    assert np.mean(changed[mask]) > 0.97
    # The noise of a seed is the same with and without the opacity.
    assert not np.any((develop(opacity, seed=3) != develop(seed=3)) & ~mask)
    assert not simulate()[1].any()


def test_controls_lie_beside_the_lungs_and_attenuate_like_opacities_within():
    inside = np.mean([opacity_depth(Opacity(place, 60)).sum() for place in ZONES.values()])
    for control in CONTROLS:
        mask = simulate([control])[1]
        assert mask.any() and not np.any(mask & lung_mask())
        assert opacity_depth(control).sum() == pytest.approx(inside, rel=0.4)


def test_the_patients_right_is_on_the_left_of_the_image():
    width = lung_mask().shape[1]
    for name, (x, _) in (ZONES | OUTSIDE).items():
        assert name == "abdomen" or name.startswith("right") == (x < 0.5)
    # The heart takes the place of the left lung, and the liver lifts the right diaphragm.
    middle = lung_thickness()[170:200]
    at = {side: middle[:, round(x * width)].mean() for side, x in (("right", 0.37), ("left", 0.61))}
    assert at["left"] < 0.8 * at["right"]
    film = develop(noise=0)
    lowest = {x: film[230, round(x * width) - 5 : round(x * width) + 5].mean() for x in (0.3, 0.8)}
    assert lowest[0.3] > lowest[0.8] + 20


def test_zones_lie_in_their_third_of_a_thick_lung():
    lung = lung_thickness()
    height, width = lung.shape
    for name, (x, y) in ZONES.items():
        side, level = name.split()
        assert lung[round(y * height), round(x * width)] > 90, name
        own = lung[:, : width // 2] if side == "right" else lung[:, width // 2 :]
        # The part below the diaphragm's dome is thin.
        rows = np.flatnonzero((own > 90).any(axis=1))
        third = (y * height - rows[0]) / (rows[-1] - rows[0]) * 3
        assert int(third) == ("upper", "middle", "lower").index(level), name


def test_seeds_give_noise_and_edges_and_exposure_darkens():
    assert np.array_equal(develop(BALL, seed=5), develop(BALL, seed=5))
    difference = develop(seed=5) - develop(seed=6)
    assert np.std(difference) == pytest.approx(np.sqrt(2), rel=0.1)
    assert np.std(develop(seed=5, noise=4) - develop(noise=0)) == pytest.approx(4, rel=0.1)
    other = opacity_depth(replace(BALL, seed=1)) > 0
    usual = opacity_depth(BALL) > 0
    assert np.sum(other ^ usual) > 0.1 * np.sum(usual)
    bright, plain, dark = (develop(exposure=one, noise=0).mean() for one in (0.7, 1, 1.4))
    assert bright > plain + 10 > plain > dark + 10


def test_side_views_are_mirrored_from_the_other_side_and_unlike_the_frontal_view():
    assert {90, 270} < {*SIDE_ANGLES}
    side, other = (simulate_side_view(angle, noise=0) for angle in (90, 270))
    assert ImageOps.mirror(other).tobytes() == side.tobytes()
    # The body is deeper than wide nowhere: of the same height, a side view is narrower.
    assert side.width / side.height < 0.8
    views = {simulate_side_view(angle, noise=0).tobytes() for angle in SIDE_ANGLES}
    assert len(views) == len(SIDE_ANGLES) == 22
    assert np.asarray(side).std() > 40
    with pytest.raises(ValueError, match="no view at 0 degrees; choose from"):
        simulate_side_view(0)


def test_the_file_is_small_has_its_licence_and_is_in_the_wheel():
    assert FILE.stat().st_size < 1_000_000
    notice, page = (
        " ".join((ROOT / one).read_text().split()) for one in ("NOTICE", "docs/phantom.md")
    )
    for text in (SOURCE, str(load()["source"]), notice, page):
        assert "LIDC-IDRI-0001" in text and "10.7937/K9/TCIA.2015.LO9QL9SX" in text
        assert "CC BY 3.0" in text and "Armato" in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert FILE.name in project["tool"]["setuptools"]["package-data"]["pneumonia_hf.imaging"]


def test_the_normal_film_looks_like_an_xray():
    film = simulate()[0]
    assert isinstance(film, Image.Image) and film.size == (376, 343)
    gray = np.asarray(film).astype(float)
    lung = lung_thickness() > 120
    assert gray[lung].mean() < 80 < 140 < gray[:, 170:200].mean()
    assert 40 < gray.std() < 70 and np.mean(gray == 255) < 0.01
