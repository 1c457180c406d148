"""Pretrained weights: loaded from a folder and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.backbones import (
    BACKBONES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    backbone_of,
    head_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def label_settings() -> dict[str, Any]:
    return {
        "num_labels": len(LABELS),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: label for label, name in enumerate(LABELS)},
    }


def timm_config(
    architecture: str, model_args: dict[str, Any] | None, rates: dict[str, float]
) -> PreTrainedConfig:
    from transformers import TimmWrapperConfig

    model_args = {**(model_args or {}), **rates} or None
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, **label_settings())


def load_body(name: str, folder: Path, rates: dict[str, float]) -> PreTrainedModel:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageClassification

    from pneumonia_hf.models import xray_cnn  # noqa: F401  # registers its classes

    backbone = BACKBONES[name]
    architecture = backbone.config.get("architecture")
    if architecture and not (folder / "config.json").exists():
        return _load_bare_weights(timm_config(architecture, None, rates), folder)
    try:
        # No trust: a folder of weights must not run code.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **label_settings())
        if config.model_type != backbone.model_type:
            raise UserError(
                f"{folder} holds a model of type {config.model_type!r}, "
                f"but this backbone is of type {backbone.model_type!r}; change one of them."
            )
        if config.model_type == "timm_wrapper":
            tiny = config.architecture.startswith("test_")  # timm's own, of no real size
            if architecture and config.architecture != architecture and not tiny:
                raise UserError(
                    f"{folder} holds a {config.architecture}, but this backbone is "
                    f"{architecture}; use --backbone timm for it."
                )
            # Made anew: timm's own settings would bring its classes back, and its processor,
            # which crops.
            config = timm_config(config.architecture, config.model_args, rates)
        else:
            for key, rate in rates.items():
                setattr(config, key, rate)
            # DeiT's weights name a class with two heads, which cannot be trained: by naming none
            # the family's first one is taken.
            config.architectures = []
        model, loading = AutoModelForImageClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,  # files saved in half precision would stay in it
            ignore_mismatched_sizes=True,  # the head of another task
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, SafetensorError) as error:
        # TypeError and ImportError: settings or an architecture that this timm does not know.
        raise UserError(f"No usable weights in {folder}: {str(error).splitlines()[0]}") from error
    head = backbone_of(model).head
    absent = [key for key in loading["missing_keys"] if not key.startswith(head)]
    if absent:
        raise UserError(
            f"The weights in {folder} lack {len(absent)} tensors of this backbone "
            f"({sorted(absent)[0]}, ...); give weights of {backbone.hub_id or name}."
        )
    strange = {key for key, *_ in loading["mismatched_keys"]}
    if f"{head}.weight" not in strange | set(loading["missing_keys"]):
        # The weights bring a head for two classes, maybe in another order: draw it anew.
        torch.nn.init.trunc_normal_(head_of(model).weight, std=0.02)
        torch.nn.init.zeros_(head_of(model).bias)
    return model


def timm_statistics(folder: Path, architecture: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of what timm weights were pretrained on.

    The folder of a model that was trained here tells it in its processor, one of timm in its
    config; else it is what timm knows of the architecture.
    """
    from timm.models import get_pretrained_cfg

    from pneumonia_hf.files import read_json

    processor = read_json(folder / "preprocessor_config.json", otherwise={})
    if "image_mean" in processor:
        return processor["image_mean"], processor["image_std"]
    summary = read_json(folder / "config.json", otherwise={}).get("pretrained_cfg") or {}
    known = get_pretrained_cfg(architecture)
    mean = summary.get("mean") or (known.mean if known else IMAGENET_MEAN)
    std = summary.get("std") or (known.std if known else IMAGENET_STD)
    return mean, std


def _load_bare_weights(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Load a timm state dict that lies in a folder without a config.json."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_config(config).eval()
    try:
        state = load_file(folder / "model.safetensors")
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"No usable weights in {folder}: model.safetensors ({error}).") from error
    prefix = backbone_of(model).head.removeprefix("timm_model.")
    head = {f"{prefix}.{name}" for name in ("weight", "bias")}
    body = {key: value.float() for key, value in state.items() if key not in head}
    missing, unexpected = model.timm_model.load_state_dict(body, strict=False)
    strange = sorted(set(missing) - head) + sorted(unexpected)
    if strange:
        raise UserError(
            f"The weights in {folder} are not those of {config.architecture} ({strange[0]})."
        )
    return model
