"""METRICS as metrics of the `evaluate` library, without a download."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from pneumonia_hf.evaluation.metrics import METRICS

CITATION = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011."


class XrayMetric(evaluate.Metric):
    """One metric of P(pneumonia) against the labels, at an operating point.

    `XrayMetric("auroc").compute(predictions=[0.9], references=[1], threshold=0.5)`
    """

    def __init__(self, name: str, **kwargs):
        self.metric_name = name
        super().__init__(config_name=name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=METRICS[self.metric_name].function.__doc__,
            citation=CITATION,
            inputs_description="predictions: P(pneumonia); references: 0 normal, 1 pneumonia.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, threshold: float = 0.5) -> dict[str, float]:
        function = METRICS[self.metric_name].function
        return {
            self.metric_name: function(np.asarray(references), np.asarray(predictions), threshold)
        }


def compute_with_evaluate(
    labels: Sequence[int], probabilities: Sequence[float], threshold: float
) -> dict[str, float]:
    """Return the result of `compute_metrics`, computed through `evaluate.combine`."""
    combined = evaluate.combine([XrayMetric(name) for name in METRICS])
    return combined.compute(
        predictions=[float(one) for one in probabilities],
        references=[int(one) for one in labels],
        threshold=threshold,
    )
