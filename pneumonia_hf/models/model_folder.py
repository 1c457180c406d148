"""The model folder: the files it holds, and how one is checked, installed and pushed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pneumonia_hf
from pneumonia_hf.errors import UserError
from pneumonia_hf.hub import push_folder

DEFAULT_MODEL = Path(pneumonia_hf.__file__).parent / "default_model"
RUN_FILE = "run.json"  # how the model was made
REPORTS_FILE = "reports.json"  # what it measured on data that it had not seen
CARD_FILE = "README.md"
CURVES_FILE = "training_curves.png"
ENSEMBLE_FILE = "ensemble.json"  # in the folder of several models
CODE_FILE = "xray_cnn.py"  # of the family that transformers does not know
# All that a model folder holds, and all that is pushed: never checkpoints or logs.
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    RUN_FILE,
    REPORTS_FILE,
    CARD_FILE,
    CURVES_FILE,
    CODE_FILE,
)
NOT_IN_EACH = {REPORTS_FILE, CURVES_FILE, CODE_FILE}


def push_model(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Push a saved model folder to the Hub in one commit; return the commit's URL.

    Args:
        folder: as `train` makes it; only MODEL_FILES are sent.
        repo_id: `owner/name`; the repository is made if there is none.
        private: whether a repository that has to be made can be seen by its owner only.

    Raises:
        UserError: not a saved model, a card that the Hub refuses, no permission, no network.
    """
    folder = Path(folder)
    check_model_folder(folder)
    return push_folder(folder, repo_id, MODEL_FILES, CARD_FILE, private)


def check_model_folder(folder: Path) -> None:
    """Raise a UserError unless `folder` holds a model that `train` has finished."""
    if not folder.is_dir():
        raise UserError(f"The model folder {folder} does not exist; check --model.")
    if (folder / ENSEMBLE_FILE).exists():
        raise UserError(f"{folder} is an ensemble; give one of its members, one after the other.")
    for name in sorted(set(MODEL_FILES) - NOT_IN_EACH):
        if not (folder / name).exists():
            raise UserError(f"{folder} holds no saved model: {name} is missing.")


def install_model_folder(unfinished: Path, folder: Path) -> None:
    """Move the files of a saved model into `folder`, over those of an older one."""
    # The model that is being replaced goes first by its config, without which nothing loads a
    # folder, and the new config comes last: a folder caught in between is no model at all.
    for name in ("config.json", REPORTS_FILE, ENSEMBLE_FILE, CODE_FILE):
        (folder / name).unlink(missing_ok=True)
    # safetensors writes a file that only its owner can read.
    shutil.copymode(unfinished / RUN_FILE, unfinished / "model.safetensors")
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)
