"""Provenance of a model: its pretrained weights and their licence, code, packages, hardware."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import pneumonia_hf
from pneumonia_hf.hub import public_name
from pneumonia_hf.models.backbones import BACKBONES
from pneumonia_hf.models.build import NO_WEIGHTS, ModelConfig
from pneumonia_hf.models.run_manifest import read_manifest

OUR_LICENCE = "apache-2.0"  # of models that were trained from no other weights
NAMED_PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "timm")


def list_versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of NAMED_PACKAGES."""
    own = {"pneumonia_hf": pneumonia_hf.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in NAMED_PACKAGES}


def find_commit() -> str | None:
    """Return the git commit of this code, with `+changes` if files differ; None without git."""
    # No search in the parent folders: an environment may lie in the repository of another project.
    root = Path(pneumonia_hf.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None  # installed, or unpacked from an archive

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = ask("status", "--porcelain", "--untracked-files=no")
        return ask("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_hardware() -> str:
    """Return the hardware of this process in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def describe_origin(config: ModelConfig, teacher: str | None = None) -> dict[str, str | None]:
    """Return the origin and licence of the weights that the model starts from."""
    backbone = BACKBONES[config.backbone]
    origin = {"backbone": config.backbone, "base_model": backbone.hub_id, "weights": None}
    licence = backbone.license
    if config.weights == NO_WEIGHTS or (config.weights is None and backbone.hub_id is None):
        origin["base_model"], licence = None, OUR_LICENCE
    elif config.weights is None or config.weights.partition("@")[0] == backbone.hub_id:
        pass
    elif Path(config.weights).expanduser().exists():
        # Without a manifest, assumed to be a copy of the backbone's own weights; the card names
        # the folder.
        origin["weights"] = public_name(config.weights)
        licence = read_manifest(config.weights).license or licence
    else:
        licence = read_manifest(config.weights).license or "other"
        origin["base_model"] = config.weights.partition("@")[0]
    if teacher is not None and read_manifest(teacher).license != licence:
        licence = "other"  # the teacher's licence may apply to the student too
    return origin | {"license": licence}
