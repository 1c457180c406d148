from dataclasses import asdict

import numpy as np
import pytest

from pneumonia_hf.statistics.calibration import calibrate_scores
from pneumonia_hf.statistics.hospitals import QUANTILES, measure_hospitals, rates_at
from pneumonia_hf.statistics.intervals import draw_patients
from pneumonia_hf.statistics.log_odds import to_logit, to_probability
from pneumonia_hf.statistics.metrics import bootstrap_intervals


def draw_hospitals():
    """40 children without a view; 30 adults in AP, 26 in PA; 12 images of one class elsewhere."""
    hospitals = np.repeat(["children", "nih", "elsewhere"], [40, 56, 12])
    views = [None] * 40 + ["AP"] * 30 + ["PA"] * 26 + ["PA"] * 12
    labels = np.concatenate([np.arange(40) % 2, np.arange(30) % 2, np.arange(26) < 8, np.ones(12)])
    logits = 3 * labels + 2 * (hospitals == "nih") + np.random.default_rng(0).normal(0, 1, 108)
    patients = [str(row // 2) for row in range(108)]
    return labels.astype(int), to_probability(logits), patients, hospitals, views


def test_each_hospital_and_view_with_enough_images_has_its_numbers():
    labels, probabilities, patients, hospitals, views = draw_hospitals()
    found = measure_hospitals(labels, probabilities, 0.9, patients, hospitals, views, 20)
    assert list(found) == ["children", "nih", "nih, AP"]  # 8 pneumonias in PA are too few
    inside = np.arange(108)[40:96]
    nih = found["nih"]
    assert (nih["normals"], nih["pneumonias"], nih["patients"]) == (33, 23, 28)
    ill = probabilities[inside][labels[inside] == 1]
    assert nih["sensitivity"]["value"] == pytest.approx(np.mean(ill >= 0.9))
    images = labels[inside], probabilities[inside], 0.9, np.array(patients)[inside]
    draws = draw_patients(images[0], images[3], 20)  # of patients, who have two images
    assert nih["auroc"] == asdict(bootstrap_intervals(*images, draws, ("auroc",))["auroc"])
    assert nih["log_odds"]["pneumonias"][25] == pytest.approx(np.median(to_logit(ill)), abs=1e-4)
    assert len(nih["log_odds"]["normals"]) == len(QUANTILES)
    assert "log_odds" not in found["nih, AP"]


def test_images_of_another_disease_are_a_class_of_their_own_where_there_are_enough(monkeypatch):
    labels, probabilities, patients, hospitals, _ = draw_hospitals()
    sick = (hospitals == "nih") & (np.arange(108) % 4 == 0)
    sick |= (hospitals == "children") & (np.arange(108) == 2)
    monkeypatch.setattr("pneumonia_hf.statistics.hospitals.FEWEST_OF_CLASS", 5)
    found = measure_hospitals(labels, probabilities, 0.9, patients, hospitals, None, 20, sick)
    nih, sick = found["nih"], sick & (labels == 0)
    assert (nih["healthy"], nih["others"]) == (nih["normals"] - sick[40:].sum(), sick[40:].sum())
    middle = np.median(to_logit(probabilities[40:][sick[40:]]))
    assert nih["log_odds"]["others"][25] == pytest.approx(middle, abs=1e-4)
    assert "others" not in found["children"] and "others" not in found["children"]["log_odds"]


def test_calibration_measures_hospitals_at_the_threshold_that_it_chooses_for_the_worst():
    labels, probabilities, patients, hospitals, views = draw_hospitals()
    found, pooled = (
        calibrate_scores(labels, to_logit(probabilities), patients, None, 10, 20, *more)
        for more in ((hospitals, views), ())
    )
    assert pooled.hospitals == {} and found.point != pooled.point
    nih = (hospitals == "nih") & (labels == 0)
    specificity = np.mean(found.probabilities[nih] < found.point.threshold)
    assert found.hospitals["nih"]["specificity"]["value"] == pytest.approx(specificity)
    assert "nih, AP" in found.hospitals


def test_rates_at_another_threshold_follow_from_the_quantiles():
    labels, probabilities, patients, hospitals, _ = draw_hospitals()
    found = measure_hospitals(labels, probabilities, 0.9, patients, hospitals, None, 20)
    for name in ("children", "nih"):
        for threshold in (0.2, 0.7, 0.9, 0.98):
            rates = rates_at(found[name]["log_odds"], threshold)
            positive = probabilities[hospitals == name] >= threshold
            ill = labels[hospitals == name] == 1
            assert rates["sensitivity"] == pytest.approx(np.mean(positive[ill]), abs=0.05)
            assert rates["specificity"] == pytest.approx(np.mean(~positive[~ill]), abs=0.05)
