"""BACKBONES: the model families, where their feature maps are, how they split into stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.errors import UserError
from pneumonia_hf.rows import LABELS

if TYPE_CHECKING:
    from torch import nn
    from transformers import BaseImageProcessor, PreTrainedModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """What the project must know of a model family; everything else is transformers' own."""

    hub_id: str
    model_type: str  # as in the config.json of a model of this family
    head: str  # dotted name of the last linear layer
    # The layer whose output is the last feature map that the head's gradient reaches.
    features: Callable[[PreTrainedModel], nn.Module]
    # From the input upwards: what is frozen first comes first.
    stages: Callable[[PreTrainedModel], list[nn.Module]]
    license: str = "apache-2.0"  # of the pretrained weights, and so of what is made from them
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    # Tokens before those of the patches; None where the feature map is a [N, C, h, w] grid.
    prefix_tokens: int | None = None
    resizable: bool = True  # takes pictures of another size than it was pretrained on
    architecture: str | None = None  # timm's name, for weights that come without config.json


BACKBONES = {
    "vit-base": Backbone(
        hub_id="google/vit-base-patch16-224-in21k",
        model_type="vit",
        head="classifier",
        # The last block's patch tokens get no gradient from a class-token head: its input does.
        features=lambda model: model.vit.layers[-1].layernorm_before,
        stages=lambda model: [model.vit.embeddings, *model.vit.layers, model.vit.layernorm],
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        prefix_tokens=1,
        resizable=False,
    ),
    "dinov2-small": Backbone(
        hub_id="facebook/dinov2-small",
        model_type="dinov2",
        head="classifier",
        features=lambda model: model.dinov2.encoder.layer[-1].norm1,
        stages=lambda model: [
            model.dinov2.embeddings,
            *model.dinov2.encoder.layer,
            model.dinov2.layernorm,
        ],
        prefix_tokens=1,
    ),
    "convnextv2-tiny": Backbone(
        hub_id="facebook/convnextv2-tiny-22k-224",
        model_type="convnextv2",
        head="classifier",
        features=lambda model: model.convnextv2.encoder.stages[-1],
        stages=lambda model: [
            model.convnextv2.embeddings,
            *model.convnextv2.encoder.stages,
            model.convnextv2.layernorm,
        ],
        # By github.com/facebookresearch/ConvNeXt-V2; the Hub's card says Apache-2.0.
        license="cc-by-nc-4.0",
    ),
    "efficientnet-lite0": Backbone(
        hub_id="timm/tf_efficientnet_lite0.in1k",
        model_type="timm_wrapper",
        head="timm_model.classifier",
        features=lambda model: model.timm_model.bn2,
        stages=lambda model: [
            model.timm_model.conv_stem,
            model.timm_model.bn1,
            *model.timm_model.blocks,
            model.timm_model.conv_head,
            model.timm_model.bn2,
        ],
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        architecture="tf_efficientnet_lite0",
    ),
}


@dataclass
class ModelConfig:
    """Which network is trained, from which weights, and how much of it."""

    backbone: str = field(
        default="dinov2-small", metadata={"help": f"One of {', '.join(BACKBONES)}."}
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained weights: a local folder or a Hub id with an optional @revision. "
            "Left out, the backbone's own Hub id."
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Pixels a side; left out, 224 or the weights' own size."}
    )
    trainable_stages: int | None = field(
        default=None,
        metadata={"help": "Train only the last N stages and the head (0: the head alone)."},
    )
    channels_last: bool = field(
        default=False,
        metadata={"help": "Keep tensors as [N, H, W, C] in memory: quicker for convolutions."},
    )

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size is {self.image_size}; give a number of pixels.")
        if self.trainable_stages is not None and self.trainable_stages < 0:
            raise UserError(f"trainable_stages is {self.trainable_stages}; give 0 or more.")


def build_model(config: ModelConfig) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Return a pretrained body with a fresh two-class head, and the processor for its input.

    The head's weights come from torch's default generator: seed it first.

    Raises:
        UserError: unknown backbone, weights that are missing or of another family, a size that
            the backbone cannot take.
    """
    from pneumonia_hf.hub import fetch_folder
    from pneumonia_hf.preprocess import make_processor

    if config.backbone not in BACKBONES:
        raise UserError(f"Unknown backbone {config.backbone!r}; choose from {sorted(BACKBONES)}.")
    backbone = BACKBONES[config.backbone]
    folder = fetch_folder(config.weights or backbone.hub_id, what="weights", flag="--weights")
    model = _load_body(backbone, folder)
    image_size = config.image_size or 224
    if not backbone.resizable:
        native = model.config.image_size
        if config.image_size not in (None, native):
            raise UserError(
                f"{config.backbone} takes pictures of {native} pixels only; leave --image_size out."
            )
        image_size = native
    if config.trainable_stages is not None:
        freeze(model, config.trainable_stages)
    if config.channels_last:
        import torch

        model = model.to(memory_format=torch.channels_last)
    return model, make_processor(image_size, backbone.mean, backbone.std)


def fast_precision() -> str:
    """Return the precision that this machine multiplies fastest in: bf16, fp16 or fp32."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if torch.accelerator.is_available():
        return "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def backbone_of(model: PreTrainedModel) -> Backbone:
    """Return the entry of BACKBONES that a model belongs to.

    Raises:
        UserError: no entry knows this family.
    """
    for backbone in BACKBONES.values():
        if backbone.model_type == model.config.model_type:
            return backbone
    known = sorted({backbone.model_type for backbone in BACKBONES.values()})
    raise UserError(
        f"Models of type {model.config.model_type!r} are not known here; known are {known}."
    )


def freeze(model: PreTrainedModel, trainable_stages: int) -> None:
    """Leave gradients to the last `trainable_stages` stages and the head only."""
    backbone = backbone_of(model)
    stages = backbone.stages(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for module in [*stages[max(0, len(stages) - trainable_stages) :], head_of(model)]:
        for parameter in module.parameters():
            parameter.requires_grad = True


def head_of(model: PreTrainedModel) -> nn.Linear:
    """Return the last linear layer, whose two outputs are the logits."""
    return model.get_submodule(backbone_of(model).head)


def _load_body(backbone: Backbone, folder: Path) -> PreTrainedModel:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageClassification, TimmWrapperConfig

    labels = {
        "num_labels": len(LABELS),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: label for label, name in enumerate(LABELS)},
    }
    if backbone.architecture and not (folder / "config.json").exists():
        config = TimmWrapperConfig(architecture=backbone.architecture, **labels)
        return _load_bare_weights(config, folder)
    try:
        config = AutoConfig.from_pretrained(folder, **labels)
        if config.model_type != backbone.model_type:
            raise UserError(
                f"{folder} holds a model of type {config.model_type!r}, "
                f"but this backbone is of type {backbone.model_type!r}; change one of them."
            )
        if isinstance(config, TimmWrapperConfig):
            # Made anew: timm's own settings would bring its classes back, and its processor,
            # which crops.
            config = TimmWrapperConfig(
                architecture=config.architecture, model_args=config.model_args, **labels
            )
        model, loading = AutoModelForImageClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,  # files saved in half precision would stay in it
            ignore_mismatched_sizes=True,  # the head of another task
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"No usable weights in {folder}: {str(error).splitlines()[0]}") from error
    absent = [key for key in loading["missing_keys"] if not key.startswith(backbone.head)]
    if absent:
        raise UserError(
            f"The weights in {folder} lack {len(absent)} tensors of this backbone "
            f"({sorted(absent)[0]}, ...); give weights of {backbone.hub_id}."
        )
    strange = {key for key, *_ in loading["mismatched_keys"]}
    if f"{backbone.head}.weight" not in strange | set(loading["missing_keys"]):
        # The weights bring a head for two classes, maybe in another order: draw it anew.
        torch.nn.init.trunc_normal_(head_of(model).weight, std=0.02)
        torch.nn.init.zeros_(head_of(model).bias)
    return model


def _load_bare_weights(config, folder: Path) -> PreTrainedModel:
    """Load a timm state dict that lies in a folder without a config.json."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_config(config)
    try:
        state = load_file(folder / "model.safetensors")
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"No usable weights in {folder}: model.safetensors ({error}).") from error
    head = {f"classifier.{name}" for name in ("weight", "bias")}
    body = {key: value.float() for key, value in state.items() if key not in head}
    missing, unexpected = model.timm_model.load_state_dict(body, strict=False)
    strange = sorted(set(missing) - head) + sorted(unexpected)
    if strange:
        raise UserError(
            f"The weights in {folder} are not those of {config.architecture} ({strange[0]})."
        )
    return model
