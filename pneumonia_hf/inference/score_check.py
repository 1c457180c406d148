"""What the scores of images without labels say of a model's threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.models.run_manifest import read_manifest
from pneumonia_hf.statistics.log_odds import to_logit
from pneumonia_hf.statistics.score_fit import find_score_misfit

if TYPE_CHECKING:
    from pneumonia_hf.inference.predictor import Predictor


def explain_score_misfit(predictor: Predictor, probabilities: Sequence[float]) -> str | None:
    """Return in a sentence that scores fit no hospital on which a model was validated, or None.

    Of ensembles, and of models of earlier versions, the scores at these hospitals are not known.
    """
    if len(predictor.networks) > 1:
        return None
    hospitals = read_manifest(predictor.networks[0].path).validation.hospitals
    fit = find_score_misfit(to_logit(np.asarray(probabilities, np.float64)), hospitals)
    return fit and (
        f"These {len(probabilities)} scores do not fit the model's validation images: the nearest, "
        f"of {fit.hospital} with {fit.share:.0%} of pneumonias, differ by {fit.difference:.2f} "
        f"(Kolmogorov and Smirnov, p = {fit.p:.3f}), and too many lie {fit.place}. The threshold "
        f"may not hold for them; recalibrate --threshold_on chooses one on labelled images."
    )
