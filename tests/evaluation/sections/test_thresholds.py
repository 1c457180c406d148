"""Other thresholds and prevalences."""

from dataclasses import replace
from types import SimpleNamespace

from pneumonia_hf.evaluation.sections.thresholds import measure
from pneumonia_hf.statistics.thresholds import OperatingPoint


def test_only_the_models_own_threshold_may_be_used(by_hand):
    section = measure(by_hand, {})
    assert "moves it between 0.3500 and 0.6500" in section.body[0]
    first, *others = section.body[1].rows
    assert first[:2] == ["the model's own", "0.5000"] and first[-1] == "yes"
    assert others and all(row[-1].startswith("no") for row in others)
    curve = section.numbers["decision_curve"]
    assert len(curve["risks"]) == len(curve["model"]) == len(curve["everyone"])


def test_a_model_without_a_threshold_is_said_to_have_none(by_hand):
    foreign = SimpleNamespace(operating_point=OperatingPoint(0.5, 0.5, 0.5), has_threshold=False)
    section = measure(replace(by_hand, predictor=foreign), {})
    assert section.body[0].startswith("The model stores no range")
    assert section.body[1].rows[0][0] == "0.5, since the model stores none"
