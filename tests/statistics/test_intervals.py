import numpy as np
import pytest

from pneumonia_hf.statistics.intervals import (
    JACKKNIFE_GROUPS,
    bca_interval,
    compare_aurocs,
    delong_interval,
    draw_patients,
    leave_out,
    percentile_interval,
)
from pneumonia_hf.statistics.metrics import auroc


def draw_pair(count: int = 300, seed: int = 3):
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.4).astype(int)
    common = generator.normal(0, 1, count)
    scores = [labels * gap + common + generator.normal(0, 1, count) for gap in (1.5, 0.8)]
    return labels, *(np.round(one, 1) for one in scores)  # with ties


def test_delongs_interval_and_comparison_equal_those_of_pauc():
    import pauc

    labels, first, second = draw_pair()
    found = delong_interval(labels, first, range(len(labels)))
    assert found.value == pytest.approx(auroc(labels, first, 0), abs=1e-12)
    curves = [pauc.ROC(labels, one, direction="<") for one in (first, second)]
    variance = pauc.var(curves[0], method="delong")
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * variance**0.5, rel=1e-6)
    compared = compare_aurocs(labels, first, second, range(len(labels)))
    assert compared.p == pytest.approx(pauc.compare(*curves, method="delong").p_value, rel=1e-5)


def test_copies_of_every_image_within_its_patient_leave_delongs_interval_as_it_is():
    labels, first, second = draw_pair(80)
    patients = np.arange(80)
    once = delong_interval(labels, first, patients)
    thrice = delong_interval(*(np.tile(one, 3) for one in (labels, first, patients)))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    # As independent images they would seem to say far more.
    wrong = delong_interval(np.tile(labels, 3), np.tile(first, 3), np.arange(240))
    assert wrong.high - wrong.low < 0.7 * (once.high - once.low)
    pair = compare_aurocs(labels, first, second, patients)
    tiled = compare_aurocs(*(np.tile(one, 3) for one in (labels, first, second, patients)))
    assert tiled.p == pytest.approx(pair.p)


def test_delongs_interval_of_patients_with_both_labels_equals_the_bootstrap():
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(150), 4)
    labels = np.tile([0, 1, 0, 1], 150)
    own = np.repeat(generator.normal(0, 2, 150), 4)  # the images of a patient are alike
    scores = own + labels + generator.normal(0, 0.5, 600)
    found = delong_interval(labels, scores, patients)
    draws = [auroc(labels[r], scores[r], 0) for r in draw_patients(labels, patients, 1000, 1)]
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(draws), rel=0.12)
    # Ignoring that patients have both labels would be much wider.
    apart = delong_interval(labels, scores, np.char.add(patients.astype(str), labels.astype(str)))
    assert apart.high - apart.low > 1.5 * (found.high - found.low)


def test_equal_models_have_no_difference_and_no_p_value():
    labels, first, _ = draw_pair()
    same = compare_aurocs(labels, first, 2 * first + 1, range(len(labels)))
    assert same.difference.value == same.difference.low == 0
    assert np.isnan(same.p)


def test_delongs_interval_of_one_patient_a_class_is_not_defined():
    found = delong_interval(np.array([0, 1, 1]), np.array([0.1, 0.9, 0.8]), ["a", "b", "b"])
    assert found.value == 1
    assert np.isnan(found.low) and np.isnan(found.high)


def test_bca_interval_equals_that_of_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(4).exponential(1, 60)
    expected = bootstrap(
        (values,), np.std, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    )
    generator = np.random.default_rng(2)
    draws = [np.std(generator.choice(values, 60)) for _ in range(20_000)]
    left_out = [np.std(values[rows]) for rows in leave_out(np.arange(60))]
    found = bca_interval(float(np.std(values)), draws, left_out)
    ends = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.02)
    plain = percentile_interval(float(np.std(values)), draws)
    assert found.high - plain.high > 0.05  # the correction matters here


def test_bca_interval_at_the_end_of_all_draws_is_not_defined():
    found = bca_interval(1.0, [1.0, 0.9, 0.8], [1.0, 1.0])
    assert found.value == 1 and np.isnan(found.low)


def test_leaving_out_covers_each_patient_once():
    patients = np.repeat([f"p{n}" for n in range(1000)], 2)
    kept = list(leave_out(patients))
    assert len(kept) == JACKKNIFE_GROUPS
    gone = np.concatenate([np.setdiff1d(np.arange(2000), rows) for rows in kept])
    assert sorted(gone) == list(range(2000))
    for rows in kept[:20]:
        assert not set(patients[rows]) & set(np.delete(patients, rows))


def test_an_infinite_draw_counts_at_the_upper_end():
    draws = [1.0] * 90 + [np.inf] * 10
    found = percentile_interval(2.0, draws)
    assert found.low == 1 and found.high == np.inf


def test_an_interval_of_which_many_draws_are_undefined_has_no_ends():
    draws = [*np.linspace(0, 1, 96), *[np.nan] * 4]
    assert percentile_interval(0.5, draws).low == pytest.approx(0.025)
    assert np.isnan(percentile_interval(0.5, [*draws, np.nan, np.nan]).low)
