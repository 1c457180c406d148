"""Build a model: a pretrained body with a new head, and its processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pneumonia_hf.cli import flag
from pneumonia_hf.errors import UserError
from pneumonia_hf.hub import to_hub_id
from pneumonia_hf.models.backbones import BACKBONES, Backbone, freeze, grow_drop_path
from pneumonia_hf.models.pretrained import label_settings, load_body, timm_config, timm_statistics

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

DEFAULT_BACKBONE = "dinov2-small"  # of --backbone; docs/architecture.md names the main models
NO_WEIGHTS = "none"  # as ModelConfig.weights: initialise all weights at random


@dataclass
class ModelConfig:
    """Which network is trained, from which weights, and how much of it."""

    backbone: str = flag(DEFAULT_BACKBONE, f"One of {', '.join(BACKBONES)}.")
    weights: str | None = flag(
        None,
        "Pretrained weights: a local folder or a Hub id with an optional @revision; "
        "none: randomly initialised. Default: the backbone's own Hub id, if it has one.",
    )
    image_size: int | None = flag(None, "Pixels per side; default: 224 or the weights' own size.")
    trainable_layer_groups: int | None = flag(
        None, "Train only the last N layer groups and the head (0: the head alone)."
    )
    channels_last: bool | None = flag(
        None,
        "Keep tensors as [N, H, W, C] in memory, which is faster for convolutions. "
        "By default on for the families that gain by it.",
        nargs="?",
        const=True,
    )
    drop_path: float | None = flag(
        None,
        "Stochastic depth: share of the images that skip a block in training, growing "
        "with the depth to this rate. Default: the family's own.",
    )
    dropout: float | None = flag(
        None, "Dropout rate of the head's input. Default: the family's own."
    )
    other_class: bool = flag(
        False,
        "Give images of classes other than NORMAL and PNEUMONIA, of one_vs_rest sources, a class "
        "of their own, OTHER: abnormal without pneumonia.",
    )

    def __post_init__(self) -> None:
        self.weights = self.weights and to_hub_id(self.weights, "--weights")
        if self.channels_last is None and self.backbone in BACKBONES:
            self.channels_last = BACKBONES[self.backbone].channels_last
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size is {self.image_size}; give a number of pixels.")
        if self.trainable_layer_groups is not None and self.trainable_layer_groups < 0:
            raise UserError(
                f"trainable_layer_groups is {self.trainable_layer_groups}; give 0 or more."
            )
        for name in ("drop_path", "dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise UserError(f"{name} is {rate}; give a share from 0 to below 1.")


def build_model(config: ModelConfig) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Return a pretrained body with a new head, and the processor for its input.

    Weights that are not pretrained come from torch's default generator: seed it first.

    Raises:
        UserError: an unknown backbone; missing weights or weights of another family; an image
            size or a regulariser that the backbone does not support.
    """
    from pneumonia_hf.hub import fetch_folder
    from pneumonia_hf.imaging.preprocess import make_processor

    if config.backbone not in BACKBONES:
        raise UserError(f"Unknown backbone {config.backbone!r}; choose from {sorted(BACKBONES)}.")
    backbone = BACKBONES[config.backbone]
    weights = config.weights or backbone.hub_id or NO_WEIGHTS
    rates = _find_rates(config)
    mean, std = backbone.mean, backbone.std
    if weights != NO_WEIGHTS:
        folder = fetch_folder(weights, what="weights", flag="--weights")
        model = load_body(config.backbone, folder, rates, config.other_class)
        if config.backbone == "timm":
            mean, std = timm_statistics(folder, model)
    elif config.backbone == "timm":
        raise UserError("Name the timm model: --weights timm/NAME, or the folder of one.")
    else:
        model = _initialise_model(backbone, rates, config.other_class)
    image_size = config.image_size or 224
    if not backbone.resizable:
        image_size = model.config.image_size
        if config.image_size not in (None, image_size):
            raise UserError(
                f"{config.backbone} takes images of {image_size} pixels only; "
                f"leave --image_size out."
            )
    _check_size(model, config.backbone, image_size)
    grow_drop_path(model)
    freeze(model, config.trainable_layer_groups)
    if config.channels_last:
        import torch

        model = model.to(memory_format=torch.channels_last)
    return model, make_processor(image_size, mean, std)


def _find_rates(config: ModelConfig) -> dict[str, float]:
    """Return the requested regularisers under the names of the backbone's own config."""
    names = BACKBONES[config.backbone].regularisers
    requested = {name: getattr(config, name) for name in ("drop_path", "dropout")}
    requested = {name: rate for name, rate in requested.items() if rate is not None}
    for name in requested.keys() - names.keys():
        able = sorted(key for key, other in BACKBONES.items() if name in other.regularisers)
        raise UserError(f"{config.backbone} has no {name}; these have: {', '.join(able)}.")
    return {names[name]: rate for name, rate in requested.items()}


def _initialise_model(
    backbone: Backbone, rates: dict[str, float], other_class: bool = False
) -> PreTrainedModel:
    """Return a randomly initialised model of the published size."""
    from torch import nn
    from transformers import AutoConfig, AutoModelForImageClassification

    from pneumonia_hf.models import xray_cnn  # noqa: F401  # registers its classes

    if backbone.model_type == "timm_wrapper":
        config = timm_config(backbone.config["architecture"], None, rates, other_class)
    else:
        settings = {**backbone.config, **rates, **label_settings(other_class)}
        config = AutoConfig.for_model(backbone.model_type, architectures=[], **settings)
    model = AutoModelForImageClassification.from_config(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and backbone.model_type == "mobilevit":
            # transformers initialises these near 0: each layer passes on a fiftieth of its input,
            # and the logits of all images are equal.
            nn.init.ones_(module.weight)
    return model.eval()  # like a loaded model


def _check_size(model: PreTrainedModel, name: str, image_size: int) -> None:
    """Raise a UserError if the model does not accept images of this size."""
    import torch

    try:
        with torch.inference_mode():
            model(pixel_values=torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} cannot take images of {image_size} pixels ({reason}); "
            f"give another --image_size."
        ) from error
