"""finalize: the best weights of a run -> a saved model folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.data.table import XrayData
from pneumonia_hf.evaluation.recalibrate import calibrate
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
    """Save `model` in `folder`: calibrated, with threshold, manifest, curves and card.

    The folder is put together beside its place, so that an older model stays until the new one
    is complete.

    Args:
        model: with the best weights of the run.
        processor: of the model.
        facts: of the run.
        folder: of the model.
    """
    unfinished = folder / UNFINISHED
    try:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        # Loaded again: what is calibrated is what was written.
        network = Network.load(unfinished, str(folder))
        print("Calibrating and choosing the threshold on the validation split.", flush=True)
        validation = _calibrate(network, facts.data, facts)
        network.model.save_pretrained(unfinished)
        draw_curves(unfinished / CURVES_FILE, facts.outcomes, facts.arguments)
        write_json(unfinished / RUN_FILE, make_manifest(facts, network, validation))
        write_card(unfinished)
        check_model_folder(unfinished)
        install_model_folder(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _calibrate(network: Network, data: XrayData, facts: RunFacts) -> dict:
    """Calibrate `network` on the raw validation images; return what `run.json` says of it."""
    found = calibrate(
        Predictor(network),
        data["validation"],
        facts.arguments.required_sensitivity,
        facts.arguments.attribution_images,
    )
    setattr(network.model.config, CONFIG_KEY, found["config"])
    return found
