"""BACKBONES: the model families, what their heads average, and their layer groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
# Classes of timm whose linear head reads the mean of the last feature map.
TIMM_AVERAGING = {"DenseNet", "EfficientNet", "ResNet"}


@dataclass(frozen=True)
class Backbone:
    """One model family: what transformers does not know about it."""

    hub_id: str | None  # of the pretrained weights, if any
    model_type: str  # as in config.json
    # From the input upwards, in the order of freezing. With the head they hold each parameter
    # once; no group has normalisation layers only.
    layer_groups: Callable[[PreTrainedModel], list[nn.Module]]
    # The layer whose output the head reads as its mean over positions, where there is one; see
    # models/activation_map.py.
    averaged_layer: Callable[[PreTrainedModel], nn.Module | None] = lambda model: None
    normalises_mean: bool = False  # `layernorm` lies between that mean and the head
    head: str = "classifier"  # dotted name of the last linear layer
    license: str = "apache-2.0"  # of the pretrained weights and of models trained from them
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    # Number of tokens before those that the head averages. None: they are a [N, C, h, w] grid.
    prefix_tokens: int | None = None
    channels_last: bool = False  # faster as [N, H, W, C] in memory; see benchmarks/precision.py
    resizable: bool = True  # accepts other image sizes than the pretraining's
    # Settings of the published size that differ from the defaults of the family's config.
    config: dict[str, Any] = field(default_factory=dict)
    # The name in the family's config of each regulariser of ModelConfig that it has.
    regularisers: dict[str, str] = field(default_factory=dict)


def _timm_averaged_layer(model: PreTrainedModel) -> nn.Module | None:
    """Return the layer whose mean over positions a timm model's head reads, if any."""
    network = model.timm_model
    pooling = getattr(getattr(network, "global_pool", None), "pool_type", None)
    if type(network).__name__ not in TIMM_AVERAGING or pooling != "avg":
        return None
    if hasattr(network, "conv_head"):
        return network.bn2  # feature_info of EfficientNet ends before conv_head
    return network.get_submodule(network.feature_info[-1]["module"])


def _timm_layer_groups(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layer groups of a timm model: its top-level modules, with series taken apart.

    timm's own `group_matcher` puts EfficientNet's conv_head into the group of its last blocks and
    DenseNet's last norm into that of the head, which would change what `last1` trains.
    """
    from torch import nn

    head = model.timm_model.get_classifier()

    def split(module: nn.Module, is_top: bool) -> Iterator[nn.Module]:
        if own := list(module.parameters(recurse=False)):
            yield nn.ParameterList(own)  # class token and positions
        for child in module.children():
            if child is head or next(child.parameters(), None) is None:
                continue
            is_series = is_top and isinstance(child, nn.Sequential | nn.ModuleList)
            if is_series or any(part is head for part in child.modules()):
                yield from split(child, is_top=False)
            else:
                yield child

    return _join_norms(split(model.timm_model, is_top=True))


def _layer_groups_of(blocks: str) -> Callable[[PreTrainedModel], list[nn.Module]]:
    """Return the `layer_groups` of a transformers family: embeddings, each block, last norm."""

    def list_groups(model: PreTrainedModel) -> list[nn.Module]:
        body = model.base_model
        return _join_norms([body.embeddings, *body.get_submodule(blocks), body.layernorm])

    return list_groups


def _join_norms(groups: Iterable[nn.Module]) -> list[nn.Module]:
    """Join groups that are normalisation layers only to the group before, or else after.

    A last group of a few hundred weights would learn next to nothing.
    """
    from torch import nn

    joined: list[list[nn.Module]] = []
    leading: list[nn.Module] = []
    for group in groups:
        owners = [module for module in group.modules() if list(module.parameters(recurse=False))]
        is_norm = bool(owners) and all("Norm" in type(owner).__name__ for owner in owners)
        if not is_norm:
            joined.append([*leading, group])
            leading = []
        else:
            (joined[-1] if joined else leading).append(group)
    return [group[0] if len(group) == 1 else nn.ModuleList(group) for group in joined]


DROP_PATH = {"drop_path": "drop_path_rate"}  # in transformers and timm
TIMM_RATES = {**DROP_PATH, "dropout": "drop_rate"}


def _timm(hub_id: str | None, classifier: str, **others) -> Backbone:
    """Return the entry of a timm model, `timm/ARCHITECTURE.WEIGHTS` on the Hub."""
    architecture = hub_id and hub_id.removeprefix("timm/").partition(".")[0]
    return Backbone(
        hub_id=hub_id,
        model_type="timm_wrapper",
        head=f"timm_model.{classifier}",
        averaged_layer=_timm_averaged_layer,
        layer_groups=_timm_layer_groups,
        config={"architecture": architecture} if architecture else {},
        channels_last=hub_id is not None,  # all that are named here are convolutional
        **{"regularisers": TIMM_RATES} | others,
    )


BACKBONES = {
    "vit-base": Backbone(
        hub_id="google/vit-base-patch16-224-in21k",
        model_type="vit",
        layer_groups=_layer_groups_of("layers"),
        mean=HALF,
        std=HALF,
        resizable=False,
    ),
    "deit-small": Backbone(
        hub_id="facebook/deit-small-distilled-patch16-224",
        model_type="deit",  # with a head on the class token, none on the distillation token
        layer_groups=_layer_groups_of("layers"),
        resizable=False,
        config={"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    ),
    "dinov2-small": Backbone(
        hub_id="facebook/dinov2-small",
        model_type="dinov2",
        averaged_layer=lambda model: model.dinov2.layernorm,
        layer_groups=_layer_groups_of("encoder.layer"),
        prefix_tokens=1,
        config={"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14},
        regularisers=DROP_PATH,
    ),
    "swin-tiny": Backbone(
        hub_id="microsoft/swin-tiny-patch4-window7-224",
        model_type="swin",
        averaged_layer=lambda model: model.swin.layernorm,
        layer_groups=_layer_groups_of("encoder.layers"),
        license="mit",  # by github.com/microsoft/Swin-Transformer; the Hub's card says Apache-2.0
        prefix_tokens=0,
        regularisers=DROP_PATH,
    ),
    "convnext-tiny": Backbone(
        hub_id="facebook/convnext-tiny-224",
        model_type="convnext",
        averaged_layer=lambda model: model.convnext.encoder.stages[-1],
        normalises_mean=True,
        layer_groups=_layer_groups_of("encoder.stages"),
        regularisers=DROP_PATH,
    ),
    "convnextv2-tiny": Backbone(
        hub_id="facebook/convnextv2-tiny-22k-224",
        model_type="convnextv2",
        averaged_layer=lambda model: model.convnextv2.encoder.stages[-1],
        normalises_mean=True,
        layer_groups=_layer_groups_of("encoder.stages"),
        # By github.com/facebookresearch/ConvNeXt-V2; the Hub's card says Apache-2.0.
        license="cc-by-nc-4.0",
        regularisers=DROP_PATH,
    ),
    "mobilevit-small": Backbone(
        hub_id="apple/mobilevit-small",
        model_type="mobilevit",
        averaged_layer=lambda model: model.mobilevit.conv_1x1_exp,
        layer_groups=lambda model: [
            model.mobilevit.conv_stem,
            *model.mobilevit.encoder.layer,
            model.mobilevit.conv_1x1_exp,
        ],
        license="other",  # Apple's: timm's "cvnets-license" and the Hub's card
        # Pretrained on values of 0..1 in the order BGR; our three channels are equal.
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        regularisers={"dropout": "classifier_dropout_prob"},
        channels_last=True,
    ),
    "resnet50": _timm("timm/resnet50.a1_in1k", "fc"),
    "efficientnet-b0": _timm("timm/efficientnet_b0.ra_in1k", "classifier"),
    "efficientnet-b3": _timm("timm/efficientnet_b3.ra2_in1k", "classifier"),
    "efficientnet-lite0": _timm(
        "timm/tf_efficientnet_lite0.in1k", "classifier", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
    ),
    "densenet121": _timm(
        "timm/densenet121.ra_in1k", "classifier", regularisers={"dropout": "drop_rate"}
    ),
    # Any other timm model: the weights name the architecture, mean and std.
    "timm": _timm(None, "?", license="other"),
    "xray-cnn": Backbone(
        hub_id=None,
        model_type="xray_cnn",
        averaged_layer=lambda model: model.blocks[-1],
        layer_groups=lambda model: list(model.blocks),
        # Measured on 200 X-rays of the Kermany set, rounded.
        mean=HALF,
        std=(0.25, 0.25, 0.25),
        regularisers={"dropout": "dropout"},
        channels_last=True,
    ),
}


def fast_precision(device: str | None = None) -> str:
    """Return bf16 where the hardware computes it, fp16 on older NVIDIA GPUs, else fp32.

    Args:
        device: the type of device, such as cpu; by default the accelerator if there is one.
    """
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device != "cpu" and torch.accelerator.is_available():
        return "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"


def backbone_of(model: PreTrainedModel) -> Backbone:
    """Return the entry of BACKBONES that a model belongs to.

    A timm model belongs to the entry of its architecture. One without an entry gets that of
    `timm`, with its own head and prefix tokens.

    Raises:
        ModelError: no entry has this model type.
    """
    from torch import nn

    config = model.config
    for backbone in BACKBONES.values():
        architecture = backbone.config.get("architecture")
        if (backbone.model_type, architecture) == (
            config.model_type,
            getattr(config, "architecture", None),
        ):
            return backbone
    if config.model_type != "timm_wrapper":
        known = sorted({backbone.model_type for backbone in BACKBONES.values()})
        raise ModelError(f"Unknown model type {config.model_type!r}; choose from {known}.")
    head = model.timm_model.get_classifier()
    names = [name for name, module in model.named_modules() if module is head]
    if not names or not isinstance(head, nn.Linear):
        raise ModelError(
            f"{config.architecture} does not end in one linear layer; choose another model."
        )
    return replace(BACKBONES["timm"], head=names[0])


def head_of(model: PreTrainedModel) -> nn.Linear:
    """Return the last linear layer, whose two outputs are the logits."""
    return model.get_submodule(backbone_of(model).head)


def freeze(model: PreTrainedModel, trainable_layer_groups: int | None) -> None:
    """Freeze all but the last `trainable_layer_groups` groups and the head; None: freeze none."""
    for parameter in model.parameters():
        parameter.requires_grad = trainable_layer_groups is None
    if trainable_layer_groups is None:
        return
    groups = backbone_of(model).layer_groups(model)
    for module in [*groups[max(0, len(groups) - trainable_layer_groups) :], head_of(model)]:
        for parameter in module.parameters():
            parameter.requires_grad = True


def count_trainable(model: PreTrainedModel) -> tuple[int, int]:
    """Return the numbers of trainable and of all weights."""
    return model.num_parameters(only_trainable=True), model.num_parameters()


def grow_drop_path(model: PreTrainedModel) -> None:
    """Let the rate of stochastic depth grow from 0 in the first block to the config's in the last.

    The other families do so themselves (Huang et al. 2016); transformers' DINOv2 gives all
    blocks the same rate whenever it is loaded.
    """
    if model.config.model_type != "dinov2":
        return
    layers = model.dinov2.encoder.layer
    for depth, layer in enumerate(layers):
        rate = model.config.drop_path_rate * depth / max(len(layers) - 1, 1)
        if hasattr(layer.drop_path, "drop_prob"):  # an Identity where the rate is 0
            layer.drop_path.drop_prob = rate
