"""finalize: the best weights of a run -> a saved model folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.evaluation.perturbations import ROBUST
from pneumonia_hf.evaluation.recalibrate import calibrate, fit_gate
from pneumonia_hf.files import write_json
from pneumonia_hf.inference.network import CONFIG_KEY, Network
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.model_card import write_card
from pneumonia_hf.models.model_folder import (
    CURVES_FILE,
    RUN_FILE,
    check_model_folder,
    install_model_folder,
)
from pneumonia_hf.training.checkpoints import UNFINISHED
from pneumonia_hf.training.curves import draw_curves
from pneumonia_hf.training.manifest import RunFacts, make_manifest

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel


def finalize(
    model: PreTrainedModel, processor: BaseImageProcessor, facts: RunFacts, folder: Path
) -> None:
    """Save `model`, which has the best weights, in `folder`: a calibrated model folder.

    It gets threshold, input gate, manifest, curves and card. It is assembled in a temporary
    folder: an older model stays until the new one is complete.
    """
    unfinished = folder / UNFINISHED
    try:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        # The saved files are calibrated, not the model in memory.
        network = Network.load(unfinished, str(folder))
        print("Calibrating and choosing the threshold on the validation split.", flush=True)
        validation = calibrate(
            Predictor(network),
            facts.data["validation"],
            facts.arguments.required_sensitivity,
            facts.arguments.attribution_images,
            resamples=facts.arguments.bootstrap_resamples,
            threshold_resamples=facts.arguments.threshold_resamples,
            with_copies=facts.arguments.metric_for_best_model == ROBUST,
        )
        setattr(network.model.config, CONFIG_KEY, validation["config"])
        network.model.save_pretrained(unfinished)
        if gate := fit_gate(network, facts.data["train"], facts.data["validation"]):
            gate.save(unfinished)
        draw_curves(unfinished / CURVES_FILE, facts.outcomes, facts.arguments)
        write_json(unfinished / RUN_FILE, make_manifest(facts, network, validation))
        write_card(unfinished)
        check_model_folder(unfinished)
        install_model_folder(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
