import numpy as np
import pytest

from pneumonia_hf.statistics.intervals import (
    Interval,
    bootstrap,
    draw_patients,
    percentile_interval,
)


def test_an_infinite_draw_counts_at_the_upper_end():
    draws = [1.0] * 90 + [np.inf] * 10
    found = percentile_interval(2.0, draws)
    assert found.low == 1 and found.high == np.inf


def test_an_interval_of_which_many_draws_are_undefined_has_no_ends():
    draws = [*np.linspace(0, 1, 96), *[np.nan] * 4]
    assert percentile_interval(0.5, draws).low == pytest.approx(0.025)
    assert np.isnan(percentile_interval(0.5, [*draws, np.nan, np.nan]).low)


def test_draws_that_are_all_equal_give_a_share_the_exact_interval_and_others_none():
    right = np.ones(14, bool)
    resamples = [np.arange(14)] * 5
    share, none, number = bootstrap(
        lambda rows: (right[rows], ~right[rows], right[rows].sum()), 14, resamples
    )
    assert (share.value, share.high) == (1, 1) and share.low == pytest.approx(0.025 ** (1 / 14))
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(1 - share.low)
    assert number.value == 14 and np.isnan([number.low, number.high]).all()
    (of_none,) = bootstrap(lambda rows: [right[rows][:0]], 14, resamples)
    assert np.isnan([of_none.value, of_none.low]).all()


def test_each_number_has_the_percentiles_of_its_own_draws():
    values = np.array([3.0, 1.0, 2.0])
    resamples = [np.array(rows) for rows in ([0, 0, 0], [1, 1, 1], [2, 2, 2])]
    found = bootstrap(
        lambda rows: (values[rows].sum(), -values[rows].max()), len(values), iter(resamples)
    )
    assert found == [
        Interval(6.0, *np.percentile([9, 3, 6], [2.5, 97.5])),
        Interval(-3.0, *np.percentile([-3, -1, -2], [2.5, 97.5])),
    ]


def test_a_resample_is_the_images_of_the_drawn_patients_in_turn():
    labels, patients = np.array([1, 0, 0, 1, 0, 1]), np.array(["b", "a", "c", "a", "c", "a"])
    images = {name: np.flatnonzero(patients == name) for name in "abc"}
    generator = np.random.default_rng(4)
    expected = []
    while len(expected) < 20:
        rows = np.concatenate([images["abc"[one]] for one in generator.integers(3, size=3)])
        if len(set(labels[rows])) == 2:
            expected.append(rows.tolist())
    assert [rows.tolist() for rows in draw_patients(labels, patients, 20, seed=4)] == expected


def test_resamples_hold_complete_patients_and_both_classes():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    patients = ["a", "a", "b", "c", "c", "c", "d", "e"]
    for rows in draw_patients(labels, patients, resamples=50, seed=1):
        drawn = [patients[row] for row in rows]
        assert drawn.count("a") % 2 == 0 and drawn.count("c") % 3 == 0
        assert {0, 1} == set(labels[rows])


def test_patient_with_both_labels_is_drawn_with_all_images():
    labels = np.array([0, 1, 0, 0, 1, 1])
    patients = ["both", "both", "n1", "n2", "p1", "p2"]
    counts = set()
    for rows in draw_patients(labels, patients, resamples=50, seed=1):
        drawn = rows.tolist()
        assert drawn.count(0) == drawn.count(1)  # both images of `both`
        counts.add(drawn.count(2))
    assert len(counts) > 1  # the other patients vary
    several = ["a", "a", "b", "b", "c", "c"]
    labels = np.array([0, 1, 0, 1, 0, 1])
    for rows in draw_patients(labels, several, resamples=50, seed=1):
        drawn = rows.tolist()
        assert all(drawn.count(row) == drawn.count(row + 1) for row in (0, 2, 4))


def test_a_single_patient_with_both_labels_is_not_in_every_resample():
    labels = np.array([0, 1, *[0] * 10, *[1] * 10])
    patients = ["both", "both", *map(str, range(20))]
    counts = {rows.tolist().count(0) for rows in draw_patients(labels, patients, 100, seed=1)}
    assert {0, 1, 2} <= counts
