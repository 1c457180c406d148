import json
import math

import numpy as np
import pytest

from pneumonia_hf.metrics import (
    METRICS,
    bootstrap_intervals,
    choose_threshold,
    compute_metrics,
    draw_patients,
    fit_temperature,
    to_logit,
    to_probability,
)

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
PROBABILITIES = [0.1, 0.2, 0.3, 0.8, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95]


def draw_scores(count: int = 600, gap: float = 3.0, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.7).astype(int)
    logits = generator.normal(0, 1.5, count) + np.where(labels == 1, gap, -gap)
    return labels, to_probability(logits), [str(row // 3) for row in range(count)]


def test_metrics_agree_with_counts_made_by_hand():
    # At 0.5: 5 of 6 pneumonias found, 3 of 4 normals spared, 5 of 6 calls right.
    values = compute_metrics(LABELS, PROBABILITIES, threshold=0.5)
    assert values.keys() == METRICS.keys()
    assert values["accuracy"] == pytest.approx(8 / 10)
    assert values["sensitivity"] == pytest.approx(5 / 6)
    assert values["specificity"] == pytest.approx(3 / 4)
    assert values["precision"] == pytest.approx(5 / 6)
    assert values["f1"] == pytest.approx(5 / 6)
    # 24 pairs: 0.4 and 0.6 and 0.7 lose to the normal at 0.8, and 0.8 ties with it.
    assert values["auroc"] == pytest.approx((24 - 3 - 0.5) / 24)
    assert values["brier"] == pytest.approx(
        np.mean((np.array(PROBABILITIES) - np.array(LABELS)) ** 2)
    )


def test_a_probability_at_the_threshold_counts_as_pneumonia():
    assert compute_metrics([0, 1], [0.2, 0.5], threshold=0.5)["sensitivity"] == 1


def test_calibration_error_is_the_gap_between_share_and_probability():
    labels = [1] * 8 + [0] * 2
    assert compute_metrics(labels, [0.85] * 10, 0.5)["ece"] == pytest.approx(0.05)
    assert compute_metrics(labels, [0.35] * 10, 0.5)["ece"] == pytest.approx(0.45)


def test_every_metric_works_through_the_evaluate_library():
    import evaluate

    from pneumonia_hf.evaluate_metric import XrayMetric

    for name, function in METRICS.items():
        metric = XrayMetric(name)
        assert isinstance(metric, evaluate.Metric)
        for probability, label in zip(PROBABILITIES, LABELS, strict=True):
            metric.add(prediction=probability, reference=label)
        value = metric.compute(threshold=0.5)[name]
        assert value == function(np.array(LABELS), np.array(PROBABILITIES), 0.5)


def test_undefined_metrics_are_nan_and_do_not_raise():
    values = compute_metrics([1, 1], [0.2, 0.9], threshold=0.5)
    assert math.isnan(values["auroc"]) and math.isnan(values["specificity"])
    assert math.isnan(compute_metrics([0, 1], [0.1, 0.2], threshold=0.5)["precision"])


def test_intervals_hold_the_value_and_repeat():
    labels, probabilities, patients = draw_scores(gap=1.0)
    one, two = (
        bootstrap_intervals(labels, probabilities, 0.5, patients, resamples=200) for _ in range(2)
    )
    assert one == two
    for name, interval in one.items():
        assert interval.low < interval.high
        if name != "ece":  # the resampled calibration error is biased upwards
            assert interval.low <= interval.value <= interval.high


def test_patients_are_drawn_whole_and_both_classes_in_every_resample():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    patients = ["a", "a", "b", "c", "c", "c", "d", "e"]
    for rows in draw_patients(labels, patients, resamples=50, seed=1):
        drawn = [patients[row] for row in rows]
        assert drawn.count("a") % 2 == 0 and drawn.count("c") % 3 == 0
        assert {0, 1} == set(labels[rows])


def test_intervals_widen_when_pictures_belong_to_few_patients():
    labels, probabilities, _ = draw_scores(gap=1.0)
    order = np.argsort(probabilities)  # a patient's pictures score alike
    labels, probabilities = labels[order], probabilities[order]

    def width(group: int) -> float:
        patients = [str(row // group) for row in range(len(labels))]
        interval = bootstrap_intervals(labels, probabilities, 0.5, patients, 200)["sensitivity"]
        return interval.high - interval.low

    assert width(group=30) > 2 * width(group=1)


def test_threshold_separates_and_lies_within_its_range():
    labels, probabilities, patients = draw_scores()
    point = choose_threshold(labels, probabilities, patients)
    assert point.low <= point.threshold <= point.high
    values = compute_metrics(labels, probabilities, point.threshold)
    assert values["sensitivity"] > 0.95 and values["specificity"] > 0.95


def test_threshold_lies_amid_the_gap_of_a_solved_part():
    labels = np.array([0] * 50 + [1] * 50)
    logits = np.concatenate([np.linspace(-8, -4, 50), np.linspace(2, 9, 50)])
    patients = [str(row) for row in range(100)]
    point = choose_threshold(labels, to_probability(logits), patients)
    assert -1.5 < to_logit(np.array(point.threshold)) < -0.5


def test_threshold_moves_less_than_youdens_own_when_patients_are_drawn_anew():
    from sklearn.metrics import roc_curve

    labels, probabilities, patients = draw_scores(count=300, gap=3.5)
    ours, youdens = [], []
    for rows in draw_patients(labels, patients, resamples=30, seed=9):
        names = [f"{place}" for place in range(len(rows))]
        point = choose_threshold(labels[rows], probabilities[rows], names, resamples=60)
        ours.append(to_logit(np.array(point.threshold)))
        spared, found, thresholds = roc_curve(labels[rows], probabilities[rows])
        youdens.append(to_logit(thresholds[np.argmax(found - spared)]))
    assert np.std(ours) < np.std(youdens)


@pytest.mark.parametrize("required", [0.9, 0.97, 0.99, 1.0])
def test_threshold_never_lowers_the_required_sensitivity(required):
    labels, probabilities, patients = draw_scores(gap=1.0)
    point = choose_threshold(labels, probabilities, patients, required_sensitivity=required)
    assert compute_metrics(labels, probabilities, point.threshold)["sensitivity"] >= required
    assert point.low <= point.threshold <= point.high


def test_temperature_of_an_overconfident_model_is_found():
    generator = np.random.default_rng(0)
    margins = generator.normal(0, 2, 20_000)
    labels = (generator.random(20_000) < to_probability(margins)).astype(int)
    assert fit_temperature(labels, margins) == pytest.approx(1, rel=0.05)
    assert fit_temperature(labels, 3 * margins) == pytest.approx(3, rel=0.05)


def test_metric_values_can_be_written_as_json(tmp_path):
    from pneumonia_hf.hub import write_json

    write_json(tmp_path / "x.json", {"a": [math.nan, 1.5], "b": {"c": math.inf}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}}


def test_probability_of_any_logit_is_a_number():
    logits = np.array([-1e6, -710.0, 0.0, 710.0, 1e6])
    probabilities = to_probability(logits)
    assert np.isfinite(probabilities).all() and (np.diff(probabilities) >= 0).all()
    assert probabilities[2] == 0.5 and probabilities[-1] == 1
