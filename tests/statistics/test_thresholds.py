import numpy as np
import pytest

from pneumonia_hf.statistics import thresholds
from pneumonia_hf.statistics.calibration import fit_temperature
from pneumonia_hf.statistics.intervals import draw_patients
from pneumonia_hf.statistics.log_odds import to_logit, to_probability
from pneumonia_hf.statistics.metrics import compute_metrics
from pneumonia_hf.statistics.thresholds import (
    LEAST_IMAGES,
    RISKS,
    by_prevalence,
    choose_threshold,
    decision_curve,
    list_thresholds,
    measure_left_out,
    predictive_values,
)


def draw_scores(count: int = 600, gap: float = 3.0, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.7).astype(int)
    logits = generator.normal(0, 1.5, count) + np.where(labels == 1, gap, -gap)
    return labels, to_probability(logits), [str(row // 3) for row in range(count)]


def test_threshold_separates_the_classes_and_is_in_its_range():
    labels, probabilities, patients = draw_scores()
    point = choose_threshold(labels, probabilities, patients)
    assert point.low <= point.threshold <= point.high
    values = compute_metrics(labels, probabilities, point.threshold)
    assert values["sensitivity"] > 0.95 and values["specificity"] > 0.95


def test_threshold_is_in_the_middle_of_the_gap_of_a_solved_split():
    labels = np.array([0] * 50 + [1] * 50)
    logits = np.concatenate([np.linspace(-8, -4, 50), np.linspace(2, 9, 50)])
    patients = [str(row) for row in range(100)]
    point = choose_threshold(labels, to_probability(logits), patients)
    assert -1.5 < to_logit(np.array(point.threshold)) < -0.5


def test_threshold_varies_less_than_youdens_over_resamples():
    from sklearn.metrics import roc_curve

    labels, probabilities, patients = draw_scores(count=300, gap=3.5)
    ours, youdens = [], []
    for rows in draw_patients(labels, patients, resamples=30, seed=9):
        names = [f"{place}" for place in range(len(rows))]
        point = choose_threshold(labels[rows], probabilities[rows], names, resamples=60)
        ours.append(to_logit(np.array(point.threshold)))
        false_positives, sensitivity, thresholds = roc_curve(labels[rows], probabilities[rows])
        youdens.append(to_logit(thresholds[np.argmax(sensitivity - false_positives)]))
    assert np.std(ours) < np.std(youdens)


@pytest.mark.parametrize("required", [0.9, 0.97, 0.99, 1.0])
def test_threshold_never_lowers_the_required_sensitivity(required):
    for seed in range(6):
        labels, probabilities, patients = draw_scores(gap=1.0, seed=seed)
        point = choose_threshold(labels, probabilities, patients, required, resamples=100)
        assert compute_metrics(labels, probabilities, point.threshold)["sensitivity"] >= required
        assert point.low <= point.threshold <= point.high


def test_near_misses_below_a_required_sensitivity_are_referred():
    """The REFER range comes from the same resamples as the threshold."""
    both_sides = 0
    for seed in range(20):
        labels, probabilities, patients = draw_scores(count=200, gap=1.5, seed=seed)
        point = choose_threshold(
            labels, probabilities, patients, required_sensitivity=0.95, resamples=100
        )
        both_sides += point.low < point.threshold < point.high
    assert both_sides == 20


def draw(count: int = 400, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.5).astype(int)
    scores = 1 / (1 + np.exp(-(labels * 3 - 1.5 + generator.normal(0, 1.5, count))))
    return labels, scores, [str(row) for row in range(count)]


def test_predictive_values_follow_bayes_rule():
    # A test of 99% sensitivity and 95% specificity at a prevalence of 1%: 0.0099 of all are hits
    # and 0.0495 false alarms.
    ppv, npv = predictive_values(0.99, 0.95, 0.01)
    assert ppv == pytest.approx(0.0099 / 0.0594)
    assert npv == pytest.approx(0.9405 / 0.9406)
    assert np.isnan(predictive_values(0.0, 1.0, 0.2)[0])


def test_predictive_values_at_the_datas_prevalence_are_those_of_the_data():
    labels, scores, patients = draw(4000)
    found = {
        one.prevalence: one
        for one in by_prevalence(labels, scores, 0.5, draw_patients(labels, patients, 50))
    }
    positive = scores >= 0.5
    assert found[0.5].ppv.value == pytest.approx(np.mean(labels[positive]), abs=0.02)
    assert found[0.01].ppv.value < found[0.2].ppv.value < found[0.5].ppv.value
    assert all(one.ppv.low < one.ppv.value < one.ppv.high for one in found.values())


def test_thresholds_for_a_sensitivity_reach_it_and_only_the_models_own_is_usable():
    labels, scores, patients = draw()
    rows = {
        one.name: one
        for one in list_thresholds(
            labels, scores, 0.7, patients, list(draw_patients(labels, patients, 50))
        )
    }
    for wanted in (0.90, 0.95, 0.99):
        found = rows[f"sensitivity {wanted:.2f}"]
        assert found.sensitivity.value >= wanted
        higher = np.min(scores[scores > found.threshold])
        assert np.mean(scores[labels == 1] >= higher) < wanted
    best = rows["highest Youden index"]
    index = best.sensitivity.value + best.specificity.value
    for threshold in np.linspace(0.01, 0.99, 99):
        assert index >= np.mean(scores[labels == 1] >= threshold) + np.mean(
            scores[labels == 0] < threshold
        )
    assert [one.name for one in rows.values() if one.usable] == ["the model's own"]
    assert rows["the model's own"].threshold == 0.7


def test_net_benefit_equals_counts_by_hand():
    # 4 ill of 10; at a risk of 0.2 (odds 1/4) 3 hits and 2 false alarms: 0.3 - 0.2 / 4. A score of
    # 0.25 is for a prevalence of 50%: with odds of 1/3 x 4/6, it is 0.18 here.
    labels = np.array([1] * 4 + [0] * 6)
    scores = np.array([0.9, 0.8, 0.7, 0.25, 0.6, 0.5] + [0.02] * 4)
    curve = decision_curve(labels, scores)
    at = int(np.flatnonzero(RISKS == 0.2)[0])
    assert curve.model[at] == pytest.approx(0.3 - 0.2 / 4)
    assert curve.everyone[at] == pytest.approx(0.4 - 0.6 / 4)
    assert curve.everyone[int(np.flatnonzero(RISKS == 0.4)[0])] == pytest.approx(0)


def test_threshold_is_the_best_for_the_worst_kind_of_copies():
    # A threshold of 0.2..0.5 separates the plain images, and calls all copies positive. One of
    # 0.6..0.8 separates the copies, and misses two of the 20 plain pneumonias.
    labels, patients = [0] * 20 + [1] * 20, range(40)
    plain = [0.2] * 20 + [0.5] * 2 + [0.8] * 18
    copies = [0.6] * 20 + [0.8] * 20
    alone = choose_threshold(labels, plain, patients, resamples=20)
    both = choose_threshold(labels, np.array([plain, copies]), patients, resamples=20)
    assert 0.2 < alone.threshold < 0.5
    assert 0.6 < both.threshold < 0.8


def test_one_kind_of_copies_changes_nothing():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 200)
    log_odds = generator.normal(2 * labels - 1, 2)
    probabilities = 1 / (1 + np.exp(-log_odds))
    one = choose_threshold(labels, probabilities, range(200), 0.9)
    assert one == choose_threshold(labels, np.stack([probabilities] * 3), range(200), 0.9)
    alone, three = (fit_temperature(labels, x) for x in (log_odds, np.stack([log_odds] * 3)))
    assert alone.value == pytest.approx(three.value)


def test_threshold_is_the_best_for_the_worst_hospital():
    # Of 400 children a threshold of 0.2..0.5 separates the classes, and one of 0.6..0.8 misses 30
    # pneumonias. The scores of 40 adults are higher: only the second separates them.
    labels = [0] * 200 + [1] * 200 + [0] * 20 + [1] * 20
    probabilities = [0.2] * 200 + [0.5] * 30 + [0.8] * 170 + [0.6] * 20 + [0.8] * 20
    hospitals = ["children"] * 400 + ["nih"] * 40
    # Two patients have all normal adults: without care, some resamples would lack both.
    patients = [*range(400), *["a"] * 14, *["b"] * 6, *range(500, 520)]
    pooled = choose_threshold(labels, probabilities, patients, resamples=50)
    worst = choose_threshold(labels, probabilities, patients, resamples=50, groups=hospitals)
    assert 0.2 < pooled.threshold < 0.5 and 0.6 < worst.low <= worst.high < 0.8


def test_hospital_of_few_images_chooses_nothing_beside_two_others():
    few = LEAST_IMAGES - 1
    labels = [0, 1] * (2 * LEAST_IMAGES + few)
    hospitals = np.repeat(["a", "b", "c"], [2 * LEAST_IMAGES] * 2 + [2 * few])
    # Any threshold of 0.2..0.4 is right in the first two; the third's pneumonias are lower.
    probabilities = [0.2, 0.4] * LEAST_IMAGES + [0.1, 0.9] * LEAST_IMAGES + [0.2, 0.25] * few
    patients = range(len(labels))
    found = choose_threshold(labels, probabilities, patients, resamples=20, groups=hospitals)
    assert 0.25 < found.low <= found.high < 0.4


def test_range_holds_95_percent_of_the_resamples(monkeypatch):
    logits = iter(np.linspace(-1, 1, 41))
    monkeypatch.setattr(thresholds, "_youden_logit", lambda *_: next(logits))
    found = choose_threshold([0, 1], [0.2, 0.8], ["a", "b"], resamples=41)
    ends = to_logit(np.array([found.low, found.threshold, found.high]))
    assert ends == pytest.approx([-0.95, 0, 0.95])


def test_one_hospital_or_too_few_images_of_others_change_nothing():
    labels, probabilities, patients = draw_scores(count=300, gap=1.0)
    pooled = choose_threshold(labels, probabilities, patients, 0.9, resamples=50)
    for count in (0, 2 * LEAST_IMAGES):
        # As many images of an adult as could be enough, but of one class.
        hospitals = np.full(300, "children").astype(object)
        hospitals[np.flatnonzero(labels == 1)[:count]] = "adults"
        assert pooled == choose_threshold(
            labels, probabilities, patients, 0.9, resamples=50, groups=hospitals
        )


def test_patients_left_out_of_the_choice_show_its_optimism():
    optimism = []
    for seed in range(6):
        labels, probabilities, patients = draw_scores(count=60, gap=0.3, seed=seed)
        draws = list(draw_patients(labels, patients, 40))
        chosen = choose_threshold(labels, probabilities, patients, resamples=50).threshold
        values = compute_metrics(labels, probabilities, chosen)
        left_out = measure_left_out(labels, probabilities, draws)
        optimism.append(2 * values["balanced_accuracy"] - sum(left_out.values()))
    assert np.mean(optimism) > 0.02
    required = measure_left_out(labels, probabilities, draws, 0.99)
    assert required["sensitivity"] > max(0.9, left_out["sensitivity"])
