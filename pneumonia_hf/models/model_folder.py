"""The model folder: its files, and how to check and install it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pneumonia_hf
from pneumonia_hf.errors import ModelError

DEFAULT_MODEL = Path(pneumonia_hf.__file__).parent / "default_model"
RUN_FILE = "run.json"  # how the model was made
REPORTS_FILE = "reports.json"  # results on unseen data
CARD_FILE = "README.md"
CURVES_FILE = "training_curves.png"
ENSEMBLE_FILE = "ensemble.json"  # in the folder of an ensemble
GATE_FILE = "gate.safetensors"  # the input gate; none if trained on few images
QUANTIZATION_FILE = "quantization.json"  # ranges of the activations, for the backend int8
CODE_FILE = "xray_cnn.py"  # for the family that transformers does not know
# The files that are pushed; never checkpoints or logs.
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    RUN_FILE,
    REPORTS_FILE,
    CARD_FILE,
    CURVES_FILE,
    CODE_FILE,
    GATE_FILE,
    QUANTIZATION_FILE,
)
NOT_IN_EACH = {REPORTS_FILE, CURVES_FILE, CODE_FILE, GATE_FILE, QUANTIZATION_FILE}


def check_model_folder(folder: Path) -> None:
    """Raise a ModelError unless `folder` holds a saved model."""
    if not folder.is_dir():
        raise ModelError(f"The model folder {folder} does not exist; check --model.")
    if (folder / ENSEMBLE_FILE).exists():
        raise ModelError(f"{folder} is an ensemble; give its members one at a time.")
    for name in sorted(set(MODEL_FILES) - NOT_IN_EACH):
        if not (folder / name).exists():
            raise ModelError(f"{folder} holds no saved model: {name} is missing.")


def install_model_folder(unfinished: Path, folder: Path) -> None:
    """Move the files of a saved model into `folder`, replacing an older model."""
    # The old config is removed first and the new one is added last: without a config.json,
    # nothing loads a half-replaced folder.
    for name in ("config.json", ENSEMBLE_FILE, *NOT_IN_EACH - {CURVES_FILE}):
        (folder / name).unlink(missing_ok=True)
    # safetensors creates files that only their owner can read.
    for path in unfinished.glob("*.safetensors"):
        shutil.copymode(unfinished / RUN_FILE, path)
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)
