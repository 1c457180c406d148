"""The columns of an audit, and how a finding names its images."""

import numpy as np
from datasets import Dataset

from pneumonia_hf.audit.dataset import MOST_EXAMPLES, Xrays, count_noun, finding_of_images


def make_xrays() -> Xrays:
    rows = {
        "file": [f"f{number}.png" for number in range(5)],
        "label": [0, 1, 0, 1, 0],
        "patient": ["a", "a", "b", "c", "d"],
    }
    split = np.array([0, 0, 0, 1, 1], np.int8)
    return Xrays(Dataset.from_dict(rows), ("train", "test"), split, images=None)


def test_images_are_related_by_a_patient_or_by_an_xray_also_over_several_steps():
    xrays = make_xrays()
    xrays.near = np.array([0, 1, 1, 2, 3])  # the second and the third are one X-ray
    first, second, third, *others = xrays.related.tolist()
    assert first == second == third and len({first, *others}) == 3


def test_a_finding_names_split_label_and_reason_of_its_first_images_and_counts_all():
    xrays = make_xrays()
    found = finding_of_images(xrays, np.array([1, 4]), "two.", ["dark", "small"])
    assert found.examples == (
        {"file": "f1.png", "part": "train", "label": "PNEUMONIA", "why": "dark"},
        {"file": "f4.png", "part": "test", "label": "NORMAL", "why": "small"},
    )
    assert found.shown == ((1, "dark"), (4, "small")) and found.more["files"] == [
        "f1.png",
        "f4.png",
    ]
    many = finding_of_images(xrays, np.arange(5).repeat(4), "many.")
    assert (many.count, len(many.examples)) == (20, MOST_EXAMPLES)
    assert [count_noun(range(n), "image") for n in range(3)] == [
        "no images", "1 image", "2 images",
    ]  # fmt: skip
