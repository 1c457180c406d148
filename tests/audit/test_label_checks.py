"""Class balance, and patients with both labels."""

import shutil

import numpy as np
import pytest
from helpers import draw_xrays

from pneumonia_hf.audit.label_checks import FALSE_ALARMS, compare_shares
from pneumonia_hf.audit.run import audit_sources


def test_split_without_a_class_fails(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / "data")
    shutil.rmtree(folder / "test" / "NORMAL")
    found = audit_sources(folder)[0]["balance"]
    assert found.verdict == "fail" and found.count == 1
    assert found.examples == ({"part": "test", "NORMAL": 0, "PNEUMONIA": 12},)


@pytest.mark.parametrize(
    "size", [20, *(pytest.param(size, marks=pytest.mark.slow) for size in (100, 200))]
)
def test_random_splits_give_one_false_alarm_in_a_hundred(size):
    """Of 600 data sets without a shift: patients with 1 to 5 images, split 70/15/15."""
    generator = np.random.default_rng(size)
    alarms = 0
    for run in range(600):
        of_patient = generator.integers(1, 6, size)
        patient = np.repeat(np.arange(size), of_patient)[:size]
        label = (generator.random(size) < 0.74).astype(int)[patient]
        split = generator.choice(3, size, p=[0.7, 0.15, 0.15])[patient]
        alarms += compare_shares(label, patient, split, draws=199, seed=run) < FALSE_ALARMS
    # 6 are expected; at a true rate of 1%, more than 13 have a probability of 1/200.
    assert alarms <= 13


def test_shift_between_splits_is_tested_over_patients_not_images(clean):
    label = np.repeat([1, 0, 1, 0], [1110, 390, 100, 100])  # 74% against 50%
    split = np.repeat([0, 1], [1500, 200])
    patient = np.arange(1700)
    assert compare_shares(label, patient, split) < FALSE_ALARMS
    # The same images, of 17 patients, are not evidence.
    assert compare_shares(label, patient // 100, split) > FALSE_ALARMS
    assert compare_shares(label, patient, np.zeros_like(split)) == 1


def test_patient_labels_cannot_be_checked_by_file_names(tmp_path):
    draw_xrays(tmp_path / "named", patients=6)
    findings, xrays = audit_sources(tmp_path / "named")
    assert xrays.by_file_name
    assert "cannot be checked" in findings["patient_labels"].text
    for number, path in enumerate(sorted((tmp_path / "named").rglob("*.png"))):
        path.rename(path.with_name(f"X-ray{number}.png"))
    findings, xrays = audit_sources(tmp_path / "named")
    assert not xrays.by_file_name
    assert findings["patient_labels"].text == "no patients with both labels."


def test_a_patient_with_both_labels_is_found_in_test_data(tmp_path):
    from helpers import draw_folder

    from pneumonia_hf.audit.run import audit_images
    from pneumonia_hf.data.load import load_splits

    data = load_splits(draw_folder(tmp_path / "data", patients=6))["all"]
    twice = {data["label"][:].index(label) for label in (0, 1)}
    rows = data.map(
        lambda row, number: {"patient": "twice" if number in twice else f"p{number}"},
        with_indices=True,
    )
    found = audit_images(rows, quick=True)["patient_labels"]
    assert found.verdict == "warn" and "1 patient with both labels" in found.text
