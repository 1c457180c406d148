"""Maps against masks of disease: boxes, and what the phantom knows."""

import numpy as np
import pytest
import torch

from pneumonia_hf.evaluation.localisation import (
    DIAMETERS,
    SIDE,
    MarkedImage,
    compare_with_truth,
    locate,
    simulate_opacities,
)


def test_the_highest_place_is_the_centre_of_a_coarse_one():
    """Enlarged, a highest place at the border would be highest at the very edge."""
    values = torch.zeros(4, 4)
    values[0, 3] = 1
    mask = np.zeros((SIDE, SIDE), bool)
    mask[SIDE // 8, SIDE - SIDE // 8] = True
    assert locate(values, mask)[0] == 1
    mask[:] = False
    mask[0, -1] = True
    assert locate(values, mask)[0] == 0


def test_mass_is_the_share_of_the_positive_part():
    values = torch.full((2, 2), -5.0)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[: SIDE // 2] = True
    assert locate(values, mask) == (0.0, 0.0)  # a map of nothing hits nothing
    even = torch.ones(8, 8)
    assert locate(even, mask)[1] == pytest.approx(0.5)
    even[4:] = -100
    assert locate(even, mask)[1] > 0.95


def test_the_fixed_map_is_made_of_other_patients():
    """Four images of one patient share a place, where no other patient has a box."""
    masks = np.zeros((7, SIDE, SIDE), bool)
    for mask, place in zip(masks, [10] * 4 + [50] * 3, strict=True):
        mask[place : place + 10, place : place + 10] = True
    found = {"map": np.tile([1.0, 0.5], (7, 1))}

    def compare(patients: str):
        images = [MarkedImage(None, *pair) for pair in zip(masks, patients, strict=True)]
        return compare_with_truth("boxes", images, found, resamples=50)

    truth, apart = compare("aaaabcd"), compare("aefgbcd")
    assert truth.fixed_hits.value == 0 and truth.methods["map"].hits_gain.value == 1
    assert truth.methods["map"].mass.value == pytest.approx(0.5)
    assert apart.fixed_hits.value == pytest.approx(4 / 7)
    assert (truth.patients, apart.patients) == (4, 7)
    # All maps hit, and no fixed map: what no resample changes has no width of 0.
    located, width = truth.methods["map"], 1 - 0.025 ** (1 / 7)
    assert (truth.fixed_hits.low, truth.fixed_hits.high) == pytest.approx((0, width))
    assert (located.hits.low, located.hits.high) == pytest.approx((1 - width, 1))
    for of in (located.mass, located.hits_gain):
        assert np.isnan([of.low, of.high]).all()


def test_the_phantom_has_an_opacity_in_every_zone_and_differs_in_nothing_else():
    normal, *films = simulate_opacities()
    assert len(films) == 6 * len(DIAMETERS) and normal.mask is None
    assert len({one.patient for one in films}) == len(films)
    plain = np.asarray(normal.image, int)
    for film in films[:2]:
        changed = np.asarray(film.image, int) != plain
        assert 0 < film.mask.mean() < 0.1
        rows, columns = np.nonzero(changed)
        places = rows * SIDE // changed.shape[0], columns * SIDE // changed.shape[1]
        assert film.mask[places].mean() > 0.9
