import math

import numpy as np
import pytest

from pneumonia_hf.statistics.intervals import draw_patients
from pneumonia_hf.statistics.log_odds import to_probability
from pneumonia_hf.statistics.metrics import (
    METRICS,
    auroc,
    auroc_within,
    bootstrap_intervals,
    compute_metrics,
)

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
PROBABILITIES = [0.1, 0.2, 0.3, 0.8, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95]


def draw_scores(count: int = 600, gap: float = 3.0, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.7).astype(int)
    logits = generator.normal(0, 1.5, count) + np.where(labels == 1, gap, -gap)
    return labels, to_probability(logits), [str(row // 3) for row in range(count)]


def find_intervals(labels, probabilities, threshold, patients, resamples):
    draws = draw_patients(labels, patients, resamples)
    return bootstrap_intervals(labels, probabilities, threshold, patients, draws)


def test_metrics_equal_counts_by_hand():
    # At 0.5: 5 of 6 pneumonias are positive, 3 of 4 normals negative, 5 of 6 positives right.
    values = compute_metrics(LABELS, PROBABILITIES, threshold=0.5)
    assert values.keys() == METRICS.keys()
    assert values["accuracy"] == pytest.approx(8 / 10)
    assert values["sensitivity"] == pytest.approx(5 / 6)
    assert values["specificity"] == pytest.approx(3 / 4)
    assert values["precision"] == pytest.approx(5 / 6)
    assert values["f1"] == pytest.approx(5 / 6)
    # 24 pairs: 0.4 and 0.6 and 0.7 lose to the normal at 0.8, and 0.8 ties with it.
    assert values["auroc"] == pytest.approx((24 - 3 - 0.5) / 24)
    # Squares by hand: .01 .04 .09 .64 of the normals, .36 .16 .09 .04 .01 .0025 of the others.
    assert values["brier"] == pytest.approx((0.78 + 0.6625) / 10)
    assert values["brier_balanced"] == pytest.approx((0.78 / 4 + 0.6625 / 6) / 2)


def test_auprc_equals_scikit_learns_example_of_average_precision():
    # docs of sklearn.metrics.average_precision_score: y_true, y_scores -> 0.83...
    value = compute_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], threshold=0.5)["auprc"]
    # By hand: recall 1/2 at precision 1, then the other half at precision 2/3.
    assert value == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_areas_equal_scikit_learns_also_with_ties():
    from sklearn.metrics import average_precision_score, roc_auc_score

    generator = np.random.default_rng(5)
    for levels in (3, 20, 10_000):
        for count in (2, 7, 300):
            labels = np.append([0, 1], generator.integers(0, 2, count))
            scores = generator.integers(0, levels, count + 2) / levels
            found = compute_metrics(labels, scores, 0.5)
            assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
            expected = average_precision_score(labels, scores)
            assert found["auprc"] == pytest.approx(expected, abs=1e-12)


def test_probability_at_the_threshold_is_positive():
    assert compute_metrics([0, 1], [0.2, 0.5], threshold=0.5)["sensitivity"] == 1


def test_calibration_error_is_the_gap_between_share_and_probability():
    labels = [1] * 8 + [0] * 2
    assert compute_metrics(labels, [0.85] * 10, 0.5)["ece"] == pytest.approx(0.05)
    assert compute_metrics(labels, [0.35] * 10, 0.5)["ece"] == pytest.approx(0.45)


def test_balanced_calibration_error_is_for_a_prevalence_of_one_half():
    # 80 pneumonias and 20 normals, all at 0.5: correct at a prevalence of 50%, off by 0.3 here.
    labels = [1] * 80 + [0] * 20
    values = compute_metrics(labels, [0.5] * 100, 0.5)
    assert values["ece"] == pytest.approx(0.3)
    assert values["ece_balanced"] == pytest.approx(0)
    assert math.isnan(compute_metrics([1, 1], [0.5, 0.5], 0.5)["ece_balanced"])


def test_undefined_metrics_are_nan_and_do_not_raise():
    values = compute_metrics([1, 1], [0.2, 0.9], threshold=0.5)
    assert math.isnan(values["auroc"]) and math.isnan(values["specificity"])
    assert math.isnan(compute_metrics([0, 1], [0.1, 0.2], threshold=0.5)["precision"])


def test_intervals_contain_the_value_and_are_repeatable():
    labels, probabilities, patients = draw_scores(gap=1.0)
    one, two = (find_intervals(labels, probabilities, 0.5, patients, 200) for _ in range(2))
    assert one == two
    for name, interval in one.items():
        assert interval.low < interval.high
        if not name.startswith("ece"):  # the resampled calibration error is biased upwards
            assert interval.low <= interval.value <= interval.high


def test_a_metric_that_is_added_has_intervals_too(monkeypatch):
    labels, probabilities, patients = draw_scores(60, gap=1.0)
    monkeypatch.setitem(METRICS, "mine", METRICS["f1"])
    found = find_intervals(labels, probabilities, 0.5, patients, 20)
    assert found["mine"] == found["f1"]


def test_area_counts_ties_by_half():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    for _ in range(20):
        labels = np.array([0, 1, *generator.integers(0, 2, 40)])
        scores = np.round(generator.random(42), 1)
        assert auroc(labels, scores, 0) == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)


def test_a_proportion_without_an_error_has_the_exact_interval_and_others_have_none():
    from scipy.stats import binomtest

    labels = np.repeat([0, 1], [8, 10])
    probabilities = np.where(labels == 1, 0.9, 0.1) + np.linspace(0, 0.05, 18)
    patients = [str(row) for row in range(18)]
    found = find_intervals(labels, probabilities, 0.5, patients, 50)
    exact = binomtest(10, 10).proportion_ci(method="exact")
    assert (found["sensitivity"].low, found["sensitivity"].high) == (exact.low, 1)
    assert found["npv"].low == binomtest(8, 8).proportion_ci(method="exact").low
    for name in ("f1", "lr_negative", "balanced_accuracy", "auroc"):
        assert np.isnan(found[name].low), name
    never = find_intervals(labels, probabilities, 1.5, patients, 50)["sensitivity"]
    assert never.low == 0 and never.high == pytest.approx(binomtest(0, 10).proportion_ci().high)


def test_areas_of_few_patients_have_no_interval():
    labels, probabilities, _ = draw_scores(count=40, gap=0.5)
    ill = np.flatnonzero(labels == 1)
    names = np.array([str(row) for row in range(len(labels))])
    names[ill] = [f"p{number % 4}" for number in range(len(ill))]
    assert np.isnan(find_intervals(labels, probabilities, 0.5, names, 50)["auroc"].low)
    names[ill] = [f"p{number % 5}" for number in range(len(ill))]
    assert find_intervals(labels, probabilities, 0.5, names, 50)["auroc"].low < 1


def test_intervals_widen_when_images_belong_to_few_patients():
    labels, probabilities, _ = draw_scores(gap=1.0)
    order = np.argsort(probabilities)  # a patient's images score alike
    labels, probabilities = labels[order], probabilities[order]

    def width(group: int) -> float:
        patients = [str(row // group) for row in range(len(labels))]
        interval = find_intervals(labels, probabilities, 0.5, patients, 200)["sensitivity"]
        return interval.high - interval.low

    assert width(group=30) > 2 * width(group=1)


def test_threshold_metrics_equal_scikit_learns_and_statsmodels():
    from sklearn import metrics as of
    from statsmodels.stats.inter_rater import cohens_kappa

    labels, scores, _ = draw_scores(400, gap=0.7)
    found = compute_metrics(labels, scores, 0.6)
    positive = (scores >= 0.6).astype(int)
    table = of.confusion_matrix(labels, positive)
    (tn, _), (fn, _) = table
    lr = of.class_likelihood_ratios(labels, positive)
    expected = {
        "accuracy": of.accuracy_score(labels, positive),
        "balanced_accuracy": of.balanced_accuracy_score(labels, positive),
        "sensitivity": of.recall_score(labels, positive),
        "specificity": of.recall_score(labels, positive, pos_label=0),
        "precision": of.precision_score(labels, positive),
        "npv": tn / (tn + fn),
        "f1": of.f1_score(labels, positive),
        "mcc": of.matthews_corrcoef(labels, positive),
        "kappa": cohens_kappa(table).kappa,
        "lr_positive": lr[0],
        "lr_negative": lr[1],
        "brier": of.brier_score_loss(labels, scores),
        "log_loss": of.log_loss(labels, scores),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_balanced_losses_equal_scikit_learns_with_weights():
    from sklearn.metrics import brier_score_loss, log_loss
    from sklearn.utils.class_weight import compute_sample_weight

    labels, scores, _ = draw_scores(300, gap=0.5)
    weights = compute_sample_weight("balanced", labels)
    found = compute_metrics(labels, scores, 0.5)
    assert found["log_loss_balanced"] == pytest.approx(
        log_loss(labels, scores, sample_weight=weights)
    )
    assert found["brier_balanced"] == pytest.approx(
        brier_score_loss(labels, scores, sample_weight=weights)
    )


def test_calibration_error_equals_that_of_scikit_learns_bins_of_equal_size():
    from sklearn.calibration import calibration_curve

    labels, scores, _ = draw_scores(500, gap=0.5)
    shares, means = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
    expected = np.abs(shares - means).mean()  # 50 images in each bin
    assert compute_metrics(labels, scores, 0.5)["ece"] == pytest.approx(expected, abs=0.002)


def test_metrics_that_are_not_defined_are_nan_or_infinite():
    found = compute_metrics([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 0.5)
    assert found["lr_positive"] == math.inf and found["lr_negative"] == 0
    constant = compute_metrics([0, 1], [0.1, 0.2], 0.5)
    assert math.isnan(constant["mcc"]) and constant["kappa"] == 0
    assert math.isnan(constant["lr_positive"]) and constant["lr_negative"] == 1


def test_bins_of_the_calibration_error_hold_equally_many_images():
    generator = np.random.default_rng(8)
    scores = generator.permutation(np.linspace(0.02, 0.97, 20))
    labels = (generator.random(20) < 0.5).astype(int)
    pairs = np.argsort(scores).reshape(10, 2)
    expected = np.mean([abs(labels[two].mean() - scores[two].mean()) for two in pairs])
    assert compute_metrics(labels, scores, 0.5)["ece"] == pytest.approx(expected, abs=1e-12)


def test_pairs_within_one_group_are_all_pairs():
    labels, scores, _ = draw_scores()
    assert auroc_within(labels, scores, np.zeros(600)) == pytest.approx(auroc(labels, scores, 0))
    assert math.isnan(auroc_within(labels, scores, labels))


def test_a_group_counts_by_its_number_of_pairs():
    # Four pairs of which all are right, and one that is wrong.
    labels = np.array([1, 1, 0, 0, 1, 0])
    scores = np.array([0.9, 0.8, 0.2, 0.1, 0.3, 0.7])
    assert auroc_within(labels, scores, np.array([0, 0, 0, 0, 1, 1])) == pytest.approx(4 / 5)
