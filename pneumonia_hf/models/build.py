"""build_model: a pretrained body with a new two-class head, and its processor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pneumonia_hf.errors import UserError
from pneumonia_hf.models.backbones import BACKBONES, Backbone, freeze, grow_drop_path
from pneumonia_hf.models.pretrained import label_settings, load_body, timm_config, timm_statistics

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

NO_WEIGHTS = "none"  # said in the place of weights: draw all of them at random


@dataclass
class ModelConfig:
    """Which network is trained, from which weights, and how much of it."""

    backbone: str = field(
        default="dinov2-small", metadata={"help": f"One of {', '.join(BACKBONES)}."}
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained weights: a local folder or a Hub id with an optional @revision; "
            "none: drawn at random. Left out, the backbone's own Hub id, if it has one."
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Pixels a side; left out, 224 or the weights' own size."}
    )
    trainable_layer_groups: int | None = field(
        default=None,
        metadata={"help": "Train only the last N layer groups and the head (0: the head alone)."},
    )
    channels_last: bool | None = field(
        default=None,
        metadata={
            "help": "Keep tensors as [N, H, W, C] in memory: quicker for convolutions. "
            "By default on for the families that gain by it.",
            # So that the flag may stand alone, as one that is True or False may.
            "nargs": "?",
            "const": True,
        },
    )
    drop_path: float | None = field(
        default=None,
        metadata={
            "help": "Share of the images that skip a block in training (stochastic depth), "
            "growing up to it with the depth. Left out, the family's own."
        },
    )
    dropout: float | None = field(
        default=None,
        metadata={
            "help": "Share of the head's input that is left out in training. "
            "Left out, the family's own."
        },
    )

    def __post_init__(self) -> None:
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
    """Return a pretrained body with a fresh two-class head, and the processor for its input.

    The head's weights come from torch's default generator: seed it first. So do all the others
    where there are no pretrained ones.

    Raises:
        UserError: unknown backbone, weights that are missing or of another family, a size that
            the backbone cannot take, a regulariser that it does not have.
    """
    from pneumonia_hf.hub import fetch_folder
    from pneumonia_hf.imaging.preprocess import make_processor

    if config.backbone not in BACKBONES:
        raise UserError(f"Unknown backbone {config.backbone!r}; choose from {sorted(BACKBONES)}.")
    backbone = BACKBONES[config.backbone]
    weights = config.weights or backbone.hub_id or NO_WEIGHTS
    rates = _rates_of(config)
    mean, std = backbone.mean, backbone.std
    if weights != NO_WEIGHTS:
        folder = fetch_folder(weights, what="weights", flag="--weights")
        model = load_body(config.backbone, folder, rates)
        if config.backbone == "timm":
            mean, std = timm_statistics(folder, model.config.architecture)
    elif config.backbone == "timm":
        raise UserError("Tell which model of timm: --weights timm/NAME, or a folder of one.")
    else:
        model = _draw_model(backbone, rates)
    image_size = config.image_size or 224
    if not backbone.resizable:
        native = model.config.image_size
        if config.image_size not in (None, native):
            raise UserError(
                f"{config.backbone} takes images of {native} pixels only; leave --image_size out."
            )
        image_size = native
    _check_size(model, config.backbone, image_size)
    grow_drop_path(model)
    freeze(model, config.trainable_layer_groups)
    if config.channels_last:
        import torch

        model = model.to(memory_format=torch.channels_last)
    return model, make_processor(image_size, mean, std)


def _rates_of(config: ModelConfig) -> dict[str, float]:
    """Return the regularisers that are asked for, by the names of the backbone's config."""
    rates = {}
    for name in ("drop_path", "dropout"):
        rate = getattr(config, name)
        if rate is None:
            continue
        if name not in BACKBONES[config.backbone].regularisers:
            able = sorted(key for key, one in BACKBONES.items() if name in one.regularisers)
            raise UserError(f"{config.backbone} has no {name}; these have: {', '.join(able)}.")
        rates[BACKBONES[config.backbone].regularisers[name]] = rate
    return rates


def _draw_model(backbone: Backbone, rates: dict[str, float]) -> PreTrainedModel:
    """Return a model of the published size with all weights drawn at random."""
    from torch import nn
    from transformers import AutoConfig, AutoModelForImageClassification

    from pneumonia_hf.models import xray_cnn  # noqa: F401  # registers its classes

    if backbone.model_type == "timm_wrapper":
        config = timm_config(backbone.config["architecture"], None, rates)
    else:
        settings = {**backbone.config, **rates, **label_settings()}
        config = AutoConfig.for_model(backbone.model_type, architectures=[], **settings)
    model = AutoModelForImageClassification.from_config(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and backbone.model_type == "mobilevit":
            # transformers draws these around 0, so that each layer lets a fiftieth through and
            # the network says the same of all images.
            nn.init.ones_(module.weight)
    return model.eval()  # as a loaded one is


def _check_size(model: PreTrainedModel, name: str, image_size: int) -> None:
    """Raise a UserError if the model cannot take images of this size."""
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
