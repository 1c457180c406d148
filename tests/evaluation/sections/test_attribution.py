"""The verdicts on attribution methods, as a report words them."""

from types import SimpleNamespace

import numpy as np
from helpers import draw_xray

from pneumonia_hf.evaluation.faithfulness import Faithfulness, MethodResult
from pneumonia_hf.evaluation.localisation import MarkedImage, compare_with_truth
from pneumonia_hf.evaluation.sections import attribution
from pneumonia_hf.statistics.intervals import Interval


def make_result(source: str, hits: list[int]) -> Faithfulness:
    masks = np.zeros((12, 112, 112), bool)
    masks[:, :20, :20] = np.arange(12).reshape(-1, 1, 1) % 2 == 0
    masks[:, -20:, -20:] |= ~masks[:, :1, :1]
    table = np.stack([np.array(hits, float), np.full(12, 0.3)], axis=1)
    images = [MarkedImage(None, mask, str(number)) for number, mask in enumerate(masks)]
    truth = compare_with_truth(source, images, {"cam": table}, 50)
    even = Interval(0.2, 0.1, 0.3)
    result = MethodResult("cam", 0.05, even, even, Interval(0.9, 0.8, 1.0), truth)
    return Faithfulness((result,), (truth,), 12)


def test_a_report_says_how_often_a_map_points_at_disease():
    section = attribution.describe(make_result("boxes", [1] * 11 + [0]))
    assert section.body[0].startswith("**Class activation map** passes.")
    numbers = section.numbers["faithfulness"]
    (result,) = numbers["results"]
    assert "in 11 of 12 images; a fixed map of the lungs hits" in result["sentence"]
    assert result["sentence"] in section.body[0] and section.body[1].rows[0][1] == "pass"
    assert "12 images of 12 patients" in section.body[3]
    assert numbers["best"] == "cam"


def test_a_report_says_so_if_no_attribution_method_passes():
    section = attribution.describe(make_result("phantom", [1] + [0] * 11))
    assert section.body[0].startswith("**No method passes.**")
    assert section.body[1].rows[0][1].startswith("fail: not shown to point at disease")
    assert "films of one patient" in section.body[3]
    assert section.numbers["faithfulness"]["best"] is None


def test_true_positives_with_boxes_come_first(monkeypatch):
    """Of eight pneumonias, five are positive at the threshold and two of these have boxes."""
    from datasets import Dataset

    boxes = ["0 0 0.5 0.5", "", "", None, "0 0 1 1", "", "0.5 0.5 0.5 0.5", ""]
    names = [f"{number}.png" for number in range(8)]
    rows = Dataset.from_dict({"file": names, "boxes": boxes})
    evaluation = SimpleNamespace(
        config=SimpleNamespace(attribution_images=4, resamples=10),
        predictor=SimpleNamespace(is_ensemble=False),
        positive=np.array([1, 1, 1, 1, 0, 1, 1, 0], bool),
        labels=np.ones(8, int),
        scores=SimpleNamespace(rows=rows, patients=tuple(names)),
        steps=None,
    )
    given = []
    monkeypatch.setattr(attribution, "open_images", lambda chosen: [(n, n) for n in chosen["file"]])
    monkeypatch.setattr(attribution, "read_xray", lambda source, name: draw_xray(0, ill=True))
    monkeypatch.setattr(attribution, "simulate_opacities", list)
    monkeypatch.setattr(attribution, "describe", lambda found: found)
    monkeypatch.setattr(
        attribution,
        "measure_faithfulness",
        lambda predictor, images, *_, **__: given.extend(images),
    )
    attribution.measure(evaluation, {})
    assert {one.patient for one in given[:2]} == {"0.png", "6.png"} and len(given) == 4
    assert [one.mask is not None for one in given] == [True, True, False, False]
    assert {one.patient for one in given} <= {f"{number}.png" for number in (0, 1, 2, 3, 5, 6)}
