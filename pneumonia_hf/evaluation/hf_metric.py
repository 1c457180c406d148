"""METRICS as a metric of the `evaluate` library, without a download."""

from __future__ import annotations

import math

import datasets
import evaluate
import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.statistics.metrics import METRICS

# Of the formulas without a source of their own.
CITATION = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011."


INPUTS = """Args:
    predictions: P(pneumonia) of each image, 0..1.
    references: 0 NORMAL, 1 PNEUMONIA.
    threshold: an image is positive at or above it; default 0.5.
Returns:
    a dict with a float for each metric, NaN where it is not defined.
"""


class XrayMetric(evaluate.Metric):
    """Metrics of P(pneumonia) against the labels, at an operating point; by default all METRICS.

    `XrayMetric("auroc").compute(predictions=[0.9], references=[1], threshold=0.5)`; several are
    joined by `evaluate.combine([XrayMetric("auroc"), XrayMetric("kappa")])`. Nothing is downloaded.
    """

    def __init__(self, *names: str, **kwargs):
        unknown = [name for name in names if name not in METRICS]
        if unknown:
            raise UserError(f"Unknown metric {unknown[0]!r}; choose from {', '.join(METRICS)}.")
        self.names = names or tuple(METRICS)
        super().__init__(config_name="-".join(names) or "all", keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="\n\n".join(map(describe_metric, self.names)),
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, threshold: float = 0.5) -> dict[str, float]:
        labels, scores = np.asarray(references), np.asarray(predictions)
        if not (np.isin(labels, (0, 1)).all() and ((scores >= 0) & (scores <= 1)).all()):  # NaN too
            raise UserError(
                "A metric takes predictions from 0 to 1 and references of 0 (NORMAL) or 1 "
                "(PNEUMONIA); mend those that are not, such as NaN."
            )
        return {name: METRICS[name].function(labels, scores, threshold) for name in self.names}


def describe_metric(name: str) -> str:
    """Return the card of a metric: its meaning, source, range, direction and limits."""
    metric = METRICS[name]
    lowest = -1 if name in ("mcc", "kappa") else 0
    highest = "infinity" if math.isinf(metric.highest) else f"{metric.highest:g}"
    better = "greater" if metric.greater_is_better else "smaller"
    prevalence = "changes" if metric.by_prevalence else "does not change"
    text = " ".join(metric.function.__doc__.split())
    return (
        f"{name}: {metric.title}. {text} Range {lowest} to {highest}; {better} is better; it "
        f"{prevalence} with the share of pneumonias."
    )
