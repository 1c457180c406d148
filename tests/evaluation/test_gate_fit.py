"""Fitting the gate: how images are drawn, where its limits come from, and when they move."""

import dataclasses

import numpy as np
import pytest
from datasets import Dataset

from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation import gate_fit
from pneumonia_hf.evaluation.gate_fit import (
    Described,
    draw_rows,
    find_errors,
    find_tail,
    fit_frontal,
    fit_gate,
    list_hospitals,
    set_limit,
)
from pneumonia_hf.inference.frontal import KINDS
from pneumonia_hf.inference.gate import Gate, Layer
from pneumonia_hf.inference.predictor import Predictor

LAYER = Layer("layer", cells=0)


def describe(count, kind, hospital, centre, seed=0, width=20):
    """Draw features around a centre."""
    random = np.random.default_rng(seed)
    features = centre + random.normal(size=(count, width))
    return Described(features, np.full(count, KINDS.index(kind)), np.full(count, hospital))


def join(*parts):
    """Return all of them as one."""
    names = ("features", "kinds", "hospitals")
    return Described(*(np.concatenate([getattr(one, name) for one in parts]) for name in names))


def test_the_hospital_is_the_source_where_it_is_not_known():
    rows = {"source": ["a", "b"], "label": [0, 1]}
    assert list_hospitals(Dataset.from_dict(rows)).tolist() == ["a", "b"]
    assert list_hospitals(Dataset.from_dict(rows | {"hospital": ["x", "x"]})).tolist() == ["x", "x"]


def test_as_many_rows_of_each_hospital_are_drawn_where_they_suffice():
    hospitals = np.array(["a"] * 100 + ["b"] * 40 + ["c"] * 5)
    rows = draw_rows(hospitals, 60, np.random.default_rng(0))
    assert np.array_equal(rows, np.unique(rows))
    counts = dict(zip(*np.unique(hospitals[rows], return_counts=True), strict=True))
    assert counts["c"] == 5 and abs(counts["a"] - counts["b"]) <= 1 and sum(counts.values()) == 60
    assert len(draw_rows(hospitals, 1000, np.random.default_rng(0))) == 145


def test_the_limit_is_that_of_films_of_the_hospital_that_was_left_out():
    """Films of b lie nearer to what is rotated: only a limit set on them keeps them."""
    films = join(describe(600, "frontal", "a", 0), describe(600, "frontal", "b", 1.0, 1))
    copies = join(describe(200, "rotated", "a", 3, 2), describe(200, "rotated", "b", 3, 3))
    others = describe(80, "no_xray", "", -6, 4)
    seen = join(describe(50, "frontal", "a", 0, 5), describe(400, "frontal", "b", 1.0, 6))
    known_a = films.select(films.hospitals == "a")
    frontal = fit_frontal(films, copies, others, seen, None)
    # As strict as with both hospitals known, the fit without b would refuse some of its films.
    alone = gate_fit.fit_classifier(join(known_a, copies.select(copies.hospitals == "a"), others))
    moved = frontal.bias[0] - gate_fit.fit_classifier(join(films, copies, others)).bias[0]
    of_b = describe(5000, "frontal", "b", 1.0, 7).features
    for classifier in (frontal, dataclasses.replace(alone, bias=alone.bias + moved * np.eye(8)[0])):
        assert np.mean(classifier.log_probabilities(of_b)[:, 0] < np.log(0.5)) < 0.004
    turned = describe(500, "rotated", "c", 3.5, 8).features
    assert np.mean(frontal.log_probabilities(turned)[:, 0] < np.log(0.5)) > 0.98


def test_the_tail_is_that_of_many_films_and_not_the_lowest():
    """At 1/1000 of normal and of exponential odds; one film far off moves it little."""
    random = np.random.default_rng(0)
    normal, waiting = random.normal(5, 2, 20000), -random.exponential(2, 20000)
    assert find_tail(normal) == pytest.approx(5 - 3.09 * 2, abs=0.6)
    assert find_tail(waiting) == pytest.approx(-2 * np.log(1000), abs=0.6)
    films = normal[:1000]
    assert 0 < find_tail(films) - find_tail(np.append(films, films.min() - 6)) < 0.8
    assert find_tail(films[:100]) == films[:100].min()


def test_with_one_hospital_validation_images_in_other_looks_set_the_limit(monkeypatch):
    films, copies = describe(400, "frontal", "a", 0), describe(100, "rotated", "a", 3, 1)
    others, seen = describe(50, "no_xray", "", -6, 2), describe(100, "frontal", "a", 0, 3)
    looks = join(describe(100, "frontal", "a", 0.6, 4), describe(50, "rotated", "a", 3, 5))
    found = fit_frontal(films, copies, others, seen, looks)
    # No frontal copy is refused; the rotated ones, which are no films, set no limit.
    refused = found.log_probabilities(looks.features)[:, 0] < np.log(0.5)
    assert not refused[:100].any() and refused[100:].mean() > 0.7
    monkeypatch.setattr(gate_fit, "MARGIN", gate_fit.MARGIN + 2)
    wider = fit_frontal(films, copies, others, seen, looks)
    assert wider.bias[0] - found.bias[0] == pytest.approx(2)
    assert np.array_equal(wider.bias[1:], found.bias[1:])


@pytest.fixture
def near_and_far():
    """A gate, the films it was fitted to, and validation images of which the last are far."""
    films = join(describe(200, "frontal", "a", 3), describe(200, "frontal", "b", 3.2, 1))
    groups = np.repeat([0, 1], 200)
    seen = describe(300, "frontal", "a", 3, 2)
    seen.features[-9:, 0] += 30
    return Gate.fit(LAYER, films.features, groups), films, seen, groups


def test_a_limit_that_refers_errors_stays_and_says_so(near_and_far):
    gate, films, seen, groups = near_and_far
    wrong = np.arange(300) >= 291
    limit, reason = set_limit(gate, films, seen, groups, wrong)
    far = gate.distances(seen.features) >= limit
    assert far.sum() == 3 and "moved" not in reason and "beyond it 100.0% are wrong" in reason
    # At most a tenth of a hospital that was left out, whatever its distance.
    films.features[200:, 1] += 40
    farther, _ = set_limit(gate, films, seen, groups, wrong)
    assert farther > limit


def test_a_limit_that_refers_no_more_errors_than_the_rest_moves_up(near_and_far):
    gate, films, seen, groups = near_and_far
    seen.features[-3:, 0] += 300  # the farthest
    farthest = np.arange(300) >= 297
    limit, reason = set_limit(gate, films, seen, groups, farthest & (np.arange(300) < 299))
    assert (gate.distances(seen.features) >= limit).sum() <= 9 and "%" in reason
    limit, reason = set_limit(gate, films, seen, groups, np.arange(300) < 30)
    assert limit == np.inf and reason.startswith("No image is referred")


def test_an_error_is_a_label_on_the_other_side_of_the_threshold(tiny_model, xray_folder):
    network, data = Predictor.from_pretrained(tiny_model).network, load_splits(xray_folder)["all"]
    assert find_errors(network, data, 1.0).tolist() == [one == 1 for one in data["label"][:]]
    assert find_errors(network, data, 0.0).tolist() == [one == 0 for one in data["label"][:]]


def test_few_images_have_no_gate_and_a_fitted_one_knows_what_is_rotated(
    tiny_model, xray_folder, monkeypatch
):
    network, data = Predictor.from_pretrained(tiny_model).network, load_splits(xray_folder)["all"]
    assert fit_gate(network, data, data, 0.5) is None
    monkeypatch.setattr(gate_fit, "LEAST_IMAGES", (4, 2))
    monkeypatch.setattr(gate_fit, "DRAWN", 2)
    monkeypatch.setattr("pneumonia_hf.evaluation.gate_images.PHANTOMS", 1)
    gate = fit_gate(network, data, data, 0.5)
    again = fit_gate(network, data, data, 0.5)
    assert np.array_equal(gate.frontal.weights, again.frontal.weights) and gate.limit_reason
    assert gate.limit == again.limit and gate.frontal.weights.shape[1] == len(KINDS)
    assert np.isfinite(gate.frontal.weights).all()
