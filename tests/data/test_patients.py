"""Patients in file names."""

import pytest

from pneumonia_hf.data.patients import find_patient, named_by_file


@pytest.mark.parametrize(
    ("file", "patient", "by_file"),
    [
        ("PNEUMONIA/person1_bacteria_1.jpeg", "train/person1", True),
        ("PNEUMONIA/person1_virus_2.jpeg", "train/person1", True),
        ("NORMAL/IM-0115-0001.jpeg", "train/IM-0115", True),
        ("NORMAL/NORMAL2-IM-0027-0001.jpeg", "train/NORMAL2-IM-0027", True),
        ("NORMAL/one/IM-0001-0001.dcm", "train/one/IM-0001", True),
        # The number of the set under its own DOI is the patient's in every split and class.
        ("PNEUMONIA/BACTERIA-1008087-0001.jpeg", "1008087", False),
        ("VIRUS-614452-0003.jpeg", "614452", False),
        ("NORMAL/NORMAL-1003233-0001.jpeg", "1003233", False),
    ],
)
def test_patient_of_the_kermany_set_is_in_the_file_name(file, patient, by_file):
    assert find_patient(file, "train/") == patient
    assert named_by_file([patient]) == by_file


@pytest.mark.parametrize("name", ["NORMAL-1.png", "Viral Pneumonia-12.png", "COVID-1-2.png"])
def test_other_names_are_no_patients(name):
    assert find_patient(name, "") is None
