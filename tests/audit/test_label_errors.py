"""Doubtful labels by cross-validated predictions from features."""

import numpy as np
from helpers import draw_xrays
from PIL import Image

from pneumonia_hf.audit.label_errors import FeatureConfig, cross_validate, find_label_errors
from pneumonia_hf.audit.run import audit_sources


def test_planted_label_errors_are_among_the_first_suspects(clean, tmp_path):
    folder = tmp_path / "data"
    draw_xrays(folder, patients=60)
    for path in (folder / "PNEUMONIA").iterdir():  # gray levels alone separate the classes
        image = np.asarray(Image.open(path)).astype(int)
        image[70:] += 40
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    wrong = []
    for number in (3, 8, 21, 34, 55):
        image = folder / f"PNEUMONIA/person{number}_virus_0.png"
        image.rename(folder / f"NORMAL/person{number}_virus_0.png")
        wrong.append(f"NORMAL/person{number}_virus_0.png")
    findings, xrays = audit_sources(folder, FeatureConfig("pixels"))
    found = findings["label_suspects"]
    assert len(set(found.more["files"][:10]) & set(wrong)) >= 4
    case = next(one for one in found.more["cases"] if one["file"] in wrong)
    assert (case["label"], case["suggested"]) == ("NORMAL", "PNEUMONIA")
    assert 0 <= case["belief_in_label"] < 0.5
    rows, probabilities, area, name = find_label_errors(
        xrays.images, xrays.label, xrays.related, FeatureConfig("pixels")
    )
    assert name == "pixels" and area > 0.9
    assert len(probabilities) == 120 and len(rows) == found.count


def test_report_says_that_missing_features_were_replaced(tmp_path):
    draw_xrays(tmp_path, patients=8)
    found = audit_sources(tmp_path, FeatureConfig("vit-base"))[0]["label_suspects"]
    assert found.more["features"] == "pixels, since the weights of vit-base are not available"


def test_cross_validation_never_splits_a_group():
    class Memory:
        def fit(self, rows, labels):
            self.seen = set(rows[:, 0].tolist())
            return self

        def predict_proba(self, rows):
            known = np.array([one in self.seen for one in rows[:, 0].tolist()], float)
            return np.stack([1 - known, known], axis=1)

    generator = np.random.default_rng(0)
    groups = generator.integers(0, 30, 400)
    labels = (groups % 2).astype(np.int64)
    probabilities = cross_validate(groups[:, None].astype(np.float32), labels, groups, Memory)
    assert probabilities.max() == 0
