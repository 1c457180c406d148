import pytest

from pneumonia_hf.demo.about import describe_model
from pneumonia_hf.demo.engine import Engine
from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.inference.predictor import Predictor


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.45, 0.6, "cannot be distinguished from chance"), (0.3, 0.4, "worse than chance"),
     (0.6, 0.7, None), (None, None, None)],
)  # fmt: skip
def test_about_says_of_chance_what_the_interval_says(tiny_model, low, high, words):
    engine = Engine(Predictor.from_pretrained(tiny_model), Limits())
    metric = {"value": 0.5, "low": low, "high": high}
    metrics = dict.fromkeys(("auroc", "sensitivity", "specificity", "ece_balanced"), metric)
    engine.reports = [{"data": "some images", "n": 20, "metrics": metrics}]
    text = describe_model(engine)
    assert "better than chance" not in text
    for one in ("cannot be distinguished from chance", "worse than chance"):
        assert (one in text) == (one == words)


def test_about_says_that_no_method_has_passed_its_tests(tiny_model):
    engine = Engine(Predictor.from_pretrained(tiny_model), Limits())
    assert "No method has passed its tests" in describe_model(engine)
    engine.default_method = "occlusion"
    assert "No method has passed its tests" not in describe_model(engine)
