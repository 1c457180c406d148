import evaluate
import numpy as np
import pytest

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.hf_metric import XrayMetric
from pneumonia_hf.statistics.metrics import METRICS, compute_metrics

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
PROBABILITIES = [0.1, 0.2, 0.3, 0.8, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95]


def test_every_metric_works_through_the_evaluate_library():
    for name, metric in METRICS.items():
        wrapped = XrayMetric(name)
        assert isinstance(wrapped, evaluate.Metric)
        for probability, label in zip(PROBABILITIES, LABELS, strict=True):
            wrapped.add(prediction=probability, reference=label)
        value = wrapped.compute(threshold=0.5)[name]
        assert value == metric.function(np.array(LABELS), np.array(PROBABILITIES), 0.5)


def test_each_metric_is_a_module_of_its_own_and_combines_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    modules = [XrayMetric(name) for name in METRICS]
    for name, module in zip(METRICS, modules, strict=True):
        assert module.description.startswith(f"{name}: ")
        assert "threshold" in module.inputs_description and module.citation
    found = evaluate.combine(modules).compute(
        predictions=PROBABILITIES, references=LABELS, threshold=0.4
    )
    assert found == pytest.approx(compute_metrics(LABELS, PROBABILITIES, 0.4))


def test_an_unknown_metric_is_refused_by_name():
    with pytest.raises(UserError, match="Unknown metric 'auc'; choose from accuracy"):
        XrayMetric("auc")


@pytest.mark.parametrize(
    ("predictions", "references"),
    [([0.2, np.nan], [0, 1]), ([0.2, np.inf], [0, 1]), ([-0.1, 0.9], [0, 1]),
     ([0.2, 1.1], [0, 1]), ([0.2, 0.9], [0, 2]), ([0.2, 0.9], [-1, 1])],
)  # fmt: skip
def test_what_is_no_probability_or_label_is_refused(predictions, references):
    with pytest.raises(UserError, match="takes predictions from 0 to 1 and references"):
        XrayMetric("auprc").compute(predictions=predictions, references=references)
