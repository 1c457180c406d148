import numpy as np
import pytest

from pneumonia_hf.statistics.comparison import (
    COMPARED,
    bootstrap_p,
    fisher_p,
    mcnemar,
    paired_differences,
    permutation_p,
)
from pneumonia_hf.statistics.intervals import draw_patients
from pneumonia_hf.statistics.metrics import auroc, compute_metrics


def draw_pair(count: int = 300, gaps: tuple[float, float] = (1.5, 0.8), seed: int = 3):
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.4).astype(int)
    common = generator.normal(0, 1, count)
    scores = (labels * gap + common + generator.normal(0, 1, count) for gap in gaps)
    return labels, *(1 / (1 + np.exp(-of)) for of in scores)


def test_each_model_is_measured_at_its_own_threshold():
    labels, first, second = draw_pair()
    draws = draw_patients(labels, range(300), 50)
    found = paired_differences(labels, first, second, (0.6, 0.4), draws)
    values = [compute_metrics(labels, *pair) for pair in ((first, 0.6), (second, 0.4))]
    assert found.keys() == set(COMPARED)
    for name, interval in found.items():
        assert interval.value == pytest.approx(values[0][name] - values[1][name])
        assert interval.low < interval.value < interval.high


def test_the_interval_of_a_difference_of_aurocs_is_that_of_delong():
    labels, first, second = draw_pair()
    found = paired_differences(
        labels, first, second, (0.5, 0.5), draw_patients(labels, range(300), 1000)
    )["auroc"]
    # DeLong et al. 1988, by its placement values.
    ill, well = labels == 1, labels == 0
    right = [of[ill][:, None] > of[well] for of in (first, second)]
    by_ill, by_well = (right[0].mean(axis) - right[1].mean(axis) for axis in (1, 0))
    variance = by_ill.var(ddof=1) / ill.sum() + by_well.var(ddof=1) / well.sum()
    assert found.value == pytest.approx(by_ill.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.1)


def test_equal_models_have_no_difference():
    labels, first, _ = draw_pair()
    draws = draw_patients(labels, range(300), 20)
    found = paired_differences(labels, first, first, (0.5, 0.5), draws)["auroc"]
    assert found.value == 0 and np.isnan(found.low)  # no resample can draw a difference


def test_mcnemars_test_equals_that_of_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar as expected

    labels, first, second = draw_pair()
    decisions = first >= 0.6, second >= 0.4
    found = mcnemar(labels, *decisions)
    right = [of == (labels == 1) for of in decisions]
    table = [[np.sum(right[0] & right[1]), np.sum(right[0] & ~right[1])],
             [np.sum(~right[0] & right[1]), np.sum(~right[0] & ~right[1])]]  # fmt: skip
    assert found.only_first_wrong == table[1][0] and found.only_second_wrong == table[0][1]
    assert found.p == pytest.approx(expected(table, exact=True).pvalue)
    assert mcnemar(labels, decisions[0], decisions[0]).p == 1


def test_p_values_of_groups_like_all_others_are_on_average_one_half():
    generator = np.random.default_rng(99)
    found = []
    for seed in range(60):
        labels, scores, _ = draw_pair(80, seed=seed)
        mask = generator.random(80) < 0.5
        inside, outside = (auroc(labels[of], scores[of], 0) for of in (mask, ~mask))
        found.append(
            (permutation_p(labels, scores, mask, inside - outside, generator),
             fisher_p("sensitivity", labels, scores, 0.5, mask))
        )  # fmt: skip
    permutation, fisher = np.mean(found, axis=0)
    assert permutation == pytest.approx(0.5, abs=0.12)
    assert fisher > 0.5  # an exact test of counts is conservative


def test_p_values_of_a_group_that_is_ranked_worse_are_small():
    labels, good, _ = draw_pair(400, gaps=(4, 1))
    mask = np.arange(400) % 2 == 0
    scores = np.where(mask, 1 - good, good)
    inside, outside = (auroc(labels[of], scores[of], 0) for of in (mask, ~mask))
    generator = np.random.default_rng(0)
    assert permutation_p(labels, scores, mask, inside - outside, generator) < 1e-6
    assert fisher_p("sensitivity", labels, scores, 0.5, mask) < 1e-6


def test_the_p_value_of_the_bootstrap_is_that_of_a_normal_difference():
    draws = np.random.default_rng(0).normal(0.2, 0.1, 20_000)
    assert bootstrap_p(np.append(0.2, draws)) == pytest.approx(0.0455, abs=0.002)
    # Draws that do not vary say that there is a difference, or none.
    assert bootstrap_p(np.zeros(5)) == 1 and bootstrap_p(np.full(5, 0.1)) == 0
