"""What the phantom says of models whose behaviour is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from pneumonia_hf.evaluation.sections.phantom import (
    BESIDE,
    DIAMETERS,
    NEVER_CALLED,
    NORMAL,
    SEVERAL,
    describe,
    list_opacities,
    measure_phantom,
)
from pneumonia_hf.imaging.phantom import OUTSIDE, ZONES, lung_mask, simulate
from pneumonia_hf.statistics.log_odds import to_probability

BASE = -3.0  # log odds of the normal film without noise


class KnownModel:
    """A predictor whose log odds rise with the weighted mean of gray levels.

    Its threshold is given as a rise above the normal film.
    """

    def __init__(self, weights: np.ndarray, threshold: float, decision: str = "NORMAL") -> None:
        self.weights, self.decision, self.asked = weights, decision, 0
        self.normal = np.mean(np.asarray(simulate(noise=0)[0]) * weights)
        self.operating_point = SimpleNamespace(threshold=float(to_probability(BASE + threshold)))

    def log_odds(self, images) -> np.ndarray:
        self.asked += len(images)
        means = np.array([np.mean(np.asarray(image) * self.weights) for image in images])
        return BASE + means - self.normal

    def predict_all(self, images) -> list[SimpleNamespace]:
        self.asked += len(images)
        return [SimpleNamespace(decision=self.decision) for _ in images]


EVERYWHERE = np.ones(lung_mask().shape)


def test_a_model_that_reads_the_lungs_answers_to_opacities_in_them_alone():
    model = KnownModel(lung_mask(), threshold=0.4)
    found = measure_phantom(model)
    assert model.asked <= 80
    assert found.failures == []
    assert found.inside.mean > 0.4 and found.beside.mean == pytest.approx(0, abs=0.02)
    assert (found.inside.films, found.beside.films) == (12, 12)
    assert found.normal == pytest.approx(BASE, abs=0.1)
    assert found.decisions == dict.fromkeys((NORMAL, *ZONES), "NORMAL")
    # A larger and denser opacity, and more of them, raise the score more.
    for zone in ZONES:
        rises = {
            (one.diameter, one.density): one.rise
            for one in found.cases
            if one.name == zone and one.seed == 0
        }
        doses = [rises[diameter, 1] for diameter in DIAMETERS]
        assert doses == sorted(doses) and rises[60, 0.5] < rises[60, 1]
    several = [one.rise for one in found.cases if one.name in SEVERAL and one.seed == 0]
    assert several == sorted(several)
    # The smallest that is called, by hand.
    called = {
        one.diameter for one in found.cases if one.name in ZONES and one.log_odds >= BASE + 0.4
    }
    assert found.find_smallest(*ZONES) == min(called) < max(DIAMETERS)


def test_a_model_that_reads_the_whole_film_fails_the_control():
    found = measure_phantom(KnownModel(EVERYWHERE, threshold=0.4))
    (failure,) = found.failures
    assert "beside the lungs by" in failure
    assert found.beside.mean > 0.5 * found.inside.mean > 0
    # One that answers to nothing fails it too, and calls nothing.
    assert len(measure_phantom(KnownModel(0 * EVERYWHERE, 1)).failures) == 2


def test_what_is_refused_or_called_without_an_opacity_is_a_failure():
    refusing = measure_phantom(KnownModel(lung_mask(), 0.4, "REFUSED"))
    assert refusing.failures == ["REFUSED as no chest X-ray: 7 of 7 films."]
    text = " ".join(one for one in describe(refusing).body if isinstance(one, str))
    assert "normal, right upper, right middle" in text and "are refused" in text
    assert measure_phantom(KnownModel(lung_mask(), 100)).failures == [NEVER_CALLED]
    always = measure_phantom(KnownModel(lung_mask(), -100)).failures
    assert always == ["The normal film is called PNEUMONIA."]


def test_the_table_has_a_row_for_each_zone_the_numbers_of_opacities_and_the_control():
    found = measure_phantom(KnownModel(lung_mask(), threshold=0.4))
    section = describe(found)
    _, _, _, table, figure = section.body
    assert [row[0] for row in table.rows] == [*ZONES, *SEVERAL, BESIDE]
    assert all(len(row) == len(table.header) == 8 for row in table.rows)
    column = table.header.index("60 mm")
    inside = [float(row[column]) for row in table.rows[: len(ZONES)]]
    assert np.mean(inside) == pytest.approx(found.inside.mean, abs=0.01)
    assert table.rows[-1][column] in ("+0.00", "-0.00", "+0.01", "-0.01")
    assert table.rows[-1][1] == "" and table.rows[-1][-1] == "none"
    assert section.numbers["phantom"]["smallest_called"] == found.find_smallest(*ZONES)
    dose, control = figure.draw().axes
    assert len(dose.lines) == len(ZONES) + 1
    assert list(dose.lines[0].get_xdata()) == [0, *DIAMETERS]
    assert len(control.lines[0].get_xdata()) == found.inside.films


def test_each_film_has_the_opacities_that_it_is_named_for():
    for case, opacities in list_opacities():
        expected = {NORMAL: 0, BESIDE: 1, **{zone: 1 for zone in ZONES}}
        count = expected.get(case.name) if case.name in expected else int(case.name.split()[0])
        assert len(opacities) == count
        for one in opacities:
            assert one.outside == (case.name == BESIDE) == (one.place in OUTSIDE.values())
            assert (one.diameter, one.density, one.seed) == (case.diameter, case.density, case.seed)
