"""METRICS as a metric of the `evaluate` library, without a download."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from pneumonia_hf.evaluation.metrics import METRICS

CITATION = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011."


class XrayMetric(evaluate.Metric):
    """Metrics of P(pneumonia) against the labels, at an operating point; by default all METRICS.

    `XrayMetric("auroc").compute(predictions=[0.9], references=[1], threshold=0.5)`
    """

    def __init__(self, *names: str, **kwargs):
        self.names = names or tuple(METRICS)
        super().__init__(config_name="-".join(names) or "all", keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="\n".join(METRICS[name].function.__doc__ for name in self.names),
            citation=CITATION,
            inputs_description="predictions: P(pneumonia); references: 0 normal, 1 pneumonia.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, threshold: float = 0.5) -> dict[str, float]:
        labels, scores = np.asarray(references), np.asarray(predictions)
        return {name: METRICS[name].function(labels, scores, threshold) for name in self.names}


def compute_with_evaluate(
    labels: Sequence[int], probabilities: Sequence[float], threshold: float
) -> dict[str, float]:
    """Return the result of `compute_metrics`, computed by XrayMetric."""
    # One module for all: `evaluate.combine` would write the predictions once for each metric.
    return XrayMetric().compute(
        predictions=[float(one) for one in probabilities],
        references=[int(one) for one in labels],
        threshold=threshold,
    )
