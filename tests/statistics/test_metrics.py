import json
import math

import numpy as np
import pytest

from pneumonia_hf.evaluation import metrics as metrics_module
from pneumonia_hf.statistics.calibration import choose_threshold, fit_temperature
from pneumonia_hf.statistics.intervals import draw_patients
from pneumonia_hf.statistics.log_odds import to_logit, to_probability
from pneumonia_hf.statistics.metrics import (
    METRICS,
    auroc,
    bootstrap_intervals,
    compute_metrics,
    percentile_and_bca_intervals,
)

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
PROBABILITIES = [0.1, 0.2, 0.3, 0.8, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95]


def draw_scores(count: int = 600, gap: float = 3.0, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.7).astype(int)
    logits = generator.normal(0, 1.5, count) + np.where(labels == 1, gap, -gap)
    return labels, to_probability(logits), [str(row // 3) for row in range(count)]


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


def test_every_metric_works_through_the_evaluate_library():
    import evaluate

    from pneumonia_hf.evaluation.hf_metric import XrayMetric

    for name, metric in METRICS.items():
        wrapped = XrayMetric(name)
        assert isinstance(wrapped, evaluate.Metric)
        for probability, label in zip(PROBABILITIES, LABELS, strict=True):
            wrapped.add(prediction=probability, reference=label)
        value = wrapped.compute(threshold=0.5)[name]
        assert value == metric.function(np.array(LABELS), np.array(PROBABILITIES), 0.5)


def test_undefined_metrics_are_nan_and_do_not_raise():
    values = compute_metrics([1, 1], [0.2, 0.9], threshold=0.5)
    assert math.isnan(values["auroc"]) and math.isnan(values["specificity"])
    assert math.isnan(compute_metrics([0, 1], [0.1, 0.2], threshold=0.5)["precision"])


def test_intervals_contain_the_value_and_are_repeatable():
    labels, probabilities, patients = draw_scores(gap=1.0)
    one, two = (
        bootstrap_intervals(labels, probabilities, 0.5, patients, resamples=200) for _ in range(2)
    )
    assert one == two
    for name, interval in one.items():
        assert interval.low < interval.high
        if not name.startswith("ece"):  # the resampled calibration error is biased upwards
            assert interval.low <= interval.value <= interval.high


def test_both_kinds_of_intervals_take_each_resample_once(monkeypatch):
    labels, probabilities, patients = draw_scores(60, gap=1.0)
    calls = []

    def count(*arguments):
        calls.append(1)
        return compute_metrics(*arguments)

    monkeypatch.setattr(metrics_module, "compute_metrics", count)
    found, bca = percentile_and_bca_intervals(labels, probabilities, 0.5, patients, 30)
    assert len(calls) == (1 + 30) + (1 + 20)  # resamples, and the images without each patient
    assert found == bootstrap_intervals(labels, probabilities, 0.5, patients, 30)
    assert bca.keys() == found.keys() and bca["auroc"].value == found["auroc"].value
    assert bca["auroc"].low < bca["auroc"].value < bca["auroc"].high


def test_area_counts_ties_by_half():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    for _ in range(20):
        labels = np.array([0, 1, *generator.integers(0, 2, 40)])
        scores = np.round(generator.random(42), 1)
        assert auroc(labels, scores, 0) == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)


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


def test_a_proportion_without_an_error_has_the_exact_interval_and_others_have_none():
    from scipy.stats import binomtest

    labels = np.repeat([0, 1], [8, 10])
    probabilities = np.where(labels == 1, 0.9, 0.1) + np.linspace(0, 0.05, 18)
    patients = [str(row) for row in range(18)]
    found = bootstrap_intervals(labels, probabilities, 0.5, patients, 50)
    exact = binomtest(10, 10).proportion_ci(method="exact")
    assert (found["sensitivity"].low, found["sensitivity"].high) == (exact.low, 1)
    assert found["npv"].low == binomtest(8, 8).proportion_ci(method="exact").low
    for name in ("f1", "lr_negative", "balanced_accuracy", "auroc"):
        assert np.isnan(found[name].low), name
    never = bootstrap_intervals(labels, probabilities, 1.5, patients, 50)["sensitivity"]
    assert never.low == 0 and never.high == pytest.approx(binomtest(0, 10).proportion_ci().high)


def test_areas_of_few_patients_have_no_interval():
    labels, probabilities, _ = draw_scores(count=40, gap=0.5)
    ill = np.flatnonzero(labels == 1)
    names = np.array([str(row) for row in range(len(labels))])
    names[ill] = [f"p{number % 4}" for number in range(len(ill))]
    assert np.isnan(bootstrap_intervals(labels, probabilities, 0.5, names, 50)["auroc"].low)
    names[ill] = [f"p{number % 5}" for number in range(len(ill))]
    assert bootstrap_intervals(labels, probabilities, 0.5, names, 50)["auroc"].low < 1


def test_intervals_widen_when_images_belong_to_few_patients():
    labels, probabilities, _ = draw_scores(gap=1.0)
    order = np.argsort(probabilities)  # a patient's images score alike
    labels, probabilities = labels[order], probabilities[order]

    def width(group: int) -> float:
        patients = [str(row // group) for row in range(len(labels))]
        interval = bootstrap_intervals(labels, probabilities, 0.5, patients, 200)["sensitivity"]
        return interval.high - interval.low

    assert width(group=30) > 2 * width(group=1)


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
    labels, probabilities, patients = draw_scores(gap=1.0)
    point = choose_threshold(labels, probabilities, patients, required_sensitivity=required)
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


def test_temperature_of_an_overconfident_model_is_found():
    generator = np.random.default_rng(0)
    log_odds = generator.normal(0, 2, 20_000)
    labels = (generator.random(20_000) < to_probability(log_odds)).astype(int)
    assert fit_temperature(labels, log_odds).value == pytest.approx(1, rel=0.05)
    found = fit_temperature(labels, 3 * log_odds)
    assert found.value == pytest.approx(3, rel=0.05)
    assert not found.separable and not found.at_bound


def test_temperature_of_separable_images_is_never_below_1(caplog):
    labels = np.array([0, 1] * 55)
    log_odds = np.where(labels == 1, 1, -1) * np.linspace(0.5, 2.5, 110)
    found = fit_temperature(labels, log_odds)
    assert found.separable and found.value == 1 and not found.at_bound
    # Separable too, but all on the side of pneumonia: the network is overconfident.
    overconfident = fit_temperature(
        labels, np.where(labels == 1, 5.0, 3.0) + np.linspace(0, 1, 110)
    )
    assert overconfident.separable and overconfident.value > 2
    assert caplog.text == ""


def test_prior_bounds_the_temperature_after_one_small_error():
    """The images are not separable, so only the prior acts: without it T is 0.09."""
    labels = np.array([0, 1] * 55)
    log_odds = np.where(labels == 1, 1, -1) * np.linspace(0.5, 2.5, 110)
    log_odds[:2] = 0.01, -0.01
    found = fit_temperature(labels, log_odds)
    assert not found.separable and 0.15 < found.value < 0.2


def test_temperature_at_the_end_of_its_range_is_a_warning(caplog):
    # Confidently wrong as often as right: no temperature is high enough.
    found = fit_temperature([0, 1] * 500, [400.0, -400.0] * 500)
    assert found.at_bound and found.value == pytest.approx(20, rel=0.01)
    assert "at the end of the range" in caplog.text


def simulate_temperatures(fit, size: int, spread: float, true: float, runs: int = 40) -> float:
    """Return the mean log loss on new images that `fit` adds to the true temperature's.

    Calibrated log odds are normal with standard deviation `spread`; the network multiplies them by
    `true`. At a spread of 20 nearly all samples of 110 are separable.
    """
    generator = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        log_odds = generator.normal(0, spread, count)
        return (generator.random(count) < to_probability(log_odds)).astype(int), log_odds

    def log_loss(labels: np.ndarray, log_odds: np.ndarray) -> float:
        losses = np.logaddexp(0, np.where(labels == 1, -log_odds, log_odds))
        return float(np.mean([losses[labels == label].mean() for label in (0, 1)]))

    extra = []
    for _ in range(runs):
        labels, log_odds = draw(size)
        new_labels, new_log_odds = draw(2000)
        found = fit(labels, true * log_odds)
        extra.append(
            log_loss(new_labels, true * new_log_odds / found) - log_loss(new_labels, new_log_odds)
        )
    return float(np.mean(extra))


def fit_plain(labels: np.ndarray, log_odds: np.ndarray, softened: bool = False) -> float:
    """Fit a temperature without a prior; `softened`: to Platt's targets (Platt 1999)."""
    from scipy.optimize import minimize_scalar

    ill = np.sum(labels == 1)
    well = len(labels) - ill
    targets = np.where(labels == 1, (ill + 1) / (ill + 2), 1 / (well + 2)) if softened else labels
    weights = np.where(labels == 1, 1 / ill, 1 / well)

    def loss(log_temperature: float) -> float:
        scaled = log_odds / np.exp(log_temperature)
        losses = targets * np.logaddexp(0, -scaled) + (1 - targets) * np.logaddexp(0, scaled)
        return float(weights @ losses)

    return math.exp(minimize_scalar(loss, bounds=np.log((0.05, 20)), method="bounded").x)


def test_prior_on_the_temperature_loses_less_than_no_prior_or_softened_targets():
    """The harder cases of the simulation by which the prior was chosen.

    Over 36 cases (50, 110 and 745 images; spread 3, 8 and 20; temperature 0.5 to 4) the mean and
    the worst extra log loss were 0.064 and 0.857 without a prior, 0.024 and 0.090 with Platt's
    targets, 0.015 and 0.085 with a prior of standard deviation 0.25, 0.008 and 0.041 with 0.5,
    and 0.007 and 0.034 with 1, the chosen one. Most of the gain is from T >= 1 for separable
    images; that alone, without a prior, gave 0.007 and 0.029 in another run.
    """
    ways = {
        "plain": fit_plain,
        "softened": lambda labels, log_odds: fit_plain(labels, log_odds, softened=True),
        "prior": lambda labels, log_odds: fit_temperature(labels, log_odds).value,
    }
    cases = [(110, 8, 1), (110, 20, 1), (110, 20, 2), (50, 20, 4)]
    extra = {
        name: np.array([simulate_temperatures(fit, *case) for case in cases])
        for name, fit in ways.items()
    }
    assert extra["prior"].max() < 0.05
    assert extra["prior"].mean() < extra["softened"].mean() / 2
    assert extra["prior"].mean() < extra["plain"].mean() / 2
    # A calibrated network stays calibrated.
    assert extra["prior"][1] < 0.01 < extra["plain"][1]


def test_metric_values_can_be_written_as_json(tmp_path):
    from pneumonia_hf.files import write_json

    write_json(tmp_path / "x.json", {"a": [math.nan, 1.5], "b": {"c": math.inf}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}}


def test_probability_of_any_logit_is_a_number():
    logits = np.array([-1e6, -710.0, 0.0, 710.0, 1e6])
    probabilities = to_probability(logits)
    assert np.isfinite(probabilities).all() and (np.diff(probabilities) >= 0).all()
    assert probabilities[2] == 0.5 and probabilities[-1] == 1


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


def test_each_metric_is_a_module_of_its_own_and_combines_without_a_network(monkeypatch):
    import evaluate

    from pneumonia_hf.evaluation.hf_metric import XrayMetric

    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    modules = [XrayMetric(name) for name in METRICS]
    for name, module in zip(METRICS, modules, strict=True):
        assert module.description.startswith(f"{name}: ")
        assert "threshold" in module.inputs_description and module.citation
    labels, scores, _ = draw_scores(60)
    found = evaluate.combine(modules).compute(
        predictions=scores.tolist(), references=labels.tolist(), threshold=0.4
    )
    assert found == pytest.approx(compute_metrics(labels, scores, 0.4))


def test_an_unknown_metric_is_refused_by_name():
    from pneumonia_hf.errors import UserError
    from pneumonia_hf.evaluation.hf_metric import XrayMetric

    with pytest.raises(UserError, match="Unknown metric 'auc'; choose from accuracy"):
        XrayMetric("auc")


def test_bins_of_the_calibration_error_hold_equally_many_images():
    generator = np.random.default_rng(8)
    scores = generator.permutation(np.linspace(0.02, 0.97, 20))
    labels = (generator.random(20) < 0.5).astype(int)
    pairs = np.argsort(scores).reshape(10, 2)
    expected = np.mean([abs(labels[two].mean() - scores[two].mean()) for two in pairs])
    assert compute_metrics(labels, scores, 0.5)["ece"] == pytest.approx(expected, abs=1e-12)
