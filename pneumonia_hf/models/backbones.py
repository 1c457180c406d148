"""BACKBONES: the model families, where their feature maps are, how they split into layer groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Backbone:
    """What the project must know of a model family; everything else is transformers' own."""

    hub_id: str | None  # None: there are no pretrained weights, or the user names them
    model_type: str  # as in the config.json of a model of this family
    head: str  # dotted name of the last linear layer
    # The layer whose output is the last feature map that the head's gradient reaches. None: there
    # is no layer whose Grad-CAM agrees with covering parts of the image.
    features: Callable[[PreTrainedModel], nn.Module] | None
    # From the input upwards: what is frozen first comes first. With the head they hold every
    # parameter of the model, each once; none is a normalisation layer alone.
    layer_groups: Callable[[PreTrainedModel], list[nn.Module]]
    license: str = "apache-2.0"  # of the pretrained weights, and so of what is made from them
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    # Tokens before those of the patches; None where the feature map is a [N, C, h, w] grid.
    prefix_tokens: int | None = None
    channels_last: bool = False  # faster as [N, H, W, C] in memory; see benchmarks/precision.py
    resizable: bool = True  # takes images of another size than it was pretrained on
    # The published size, as settings of the family's config that differ from its defaults.
    config: dict[str, Any] = field(default_factory=dict)
    # Which setting of its config each of ModelConfig's regularisers is; none if left out.
    regularisers: dict[str, str] = field(default_factory=dict)


def _timm_features(model: PreTrainedModel) -> nn.Module:
    """Return the layer of any timm model whose output is its last feature map."""
    own = model.timm_model
    if _timm_prefix_tokens(own) is not None:
        return own.blocks[-1].norm1
    if hasattr(own, "conv_head") and hasattr(own, "bn2"):
        return own.bn2  # the EfficientNets widen the last layer group's map once more
    info = getattr(own, "feature_info", None)
    if not isinstance(info, list) or getattr(own, "output_fmt", "NCHW") not in ("NCHW", None):
        raise UserError(
            f"Where {model.config.architecture} has its last feature map is not known here; "
            f"use the method occlusion."
        )
    return own.get_submodule(info[-1]["module"])


def _timm_prefix_tokens(own: nn.Module) -> int | None:
    """Return how many tokens of a timm model precede the patches'; None for one without tokens."""
    return getattr(own, "num_prefix_tokens", None) if hasattr(own, "blocks") else None


def _timm_layer_groups(model: PreTrainedModel) -> list[nn.Module]:
    """Return the parts of any timm model in the order of its layers, without the head."""
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

    return _join_norms(list(split(model.timm_model, is_top=True)))


def _join_norms(groups: list[nn.Module]) -> list[nn.Module]:
    """Return `layer groups` with bare normalisation layers joined to the one before, or else after.

    "The last layer group" would else be a few hundred weights that learn next to nothing.
    """
    from torch import nn

    joined: list[list[nn.Module]] = []
    leading: list[nn.Module] = []  # norms before anything else
    for group in groups:
        if not _is_norm(group):
            joined.append([*leading, group])
            leading = []
        elif joined:
            joined[-1].append(group)
        else:
            leading.append(group)
    return [one[0] if len(one) == 1 else nn.ModuleList(one) for one in joined]


def _is_norm(group: nn.Module) -> bool:
    """Return whether all parameters of a module belong to normalisation layers."""
    owners = [one for one in group.modules() if list(one.parameters(recurse=False))]
    return bool(owners) and all("Norm" in type(one).__name__ for one in owners)


def _timm(hub_id: str | None, classifier: str, **others) -> Backbone:
    """Return the entry of a model of the timm library, by transformers' wrapper around it."""
    return Backbone(
        hub_id=hub_id,
        model_type="timm_wrapper",
        head=f"timm_model.{classifier}",
        features=_timm_features,
        layer_groups=_timm_layer_groups,
        **others,
    )


DROP_PATH = {"drop_path": "drop_path_rate"}  # as transformers and timm call it
TIMM_RATES = {**DROP_PATH, "dropout": "drop_rate"}
BACKBONES = {
    "vit-base": Backbone(
        hub_id="google/vit-base-patch16-224-in21k",
        model_type="vit",
        head="classifier",
        # The last block's patch tokens get no gradient from a class-token head: its input does.
        features=lambda model: model.vit.layers[-1].layernorm_before,
        layer_groups=lambda model: _join_norms(
            [model.vit.embeddings, *model.vit.layers, model.vit.layernorm]
        ),
        mean=HALF,
        std=HALF,
        prefix_tokens=1,
        resizable=False,
    ),
    "deit-small": Backbone(
        hub_id="facebook/deit-small-distilled-patch16-224",
        model_type="deit",
        head="classifier",  # on the class token; the distillation token's own head is left out
        features=lambda model: model.deit.layers[-1].layernorm_before,
        layer_groups=lambda model: _join_norms(
            [model.deit.embeddings, *model.deit.layers, model.deit.layernorm]
        ),
        prefix_tokens=2,
        resizable=False,
        config={"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    ),
    "dinov2-small": Backbone(
        hub_id="facebook/dinov2-small",
        model_type="dinov2",
        head="classifier",
        # Its head takes class token and mean of the patches. Fine-tuned, on 20 X-rays, Grad-CAM
        # agrees with occlusion at 0.03 to 0.26 (Spearman) in whichever of seven layers.
        features=None,
        layer_groups=lambda model: _join_norms(
            [model.dinov2.embeddings, *model.dinov2.encoder.layer, model.dinov2.layernorm]
        ),
        prefix_tokens=1,
        config={
            "hidden_size": 384,
            "num_attention_heads": 6,
            "image_size": 518,
            "patch_size": 14,
        },
        regularisers=DROP_PATH,
    ),
    "swin-tiny": Backbone(
        hub_id="microsoft/swin-tiny-patch4-window7-224",
        model_type="swin",
        head="classifier",
        features=lambda model: model.swin.layernorm,
        layer_groups=lambda model: _join_norms(
            [model.swin.embeddings, *model.swin.encoder.layers, model.swin.layernorm]
        ),
        # By github.com/microsoft/Swin-Transformer; the Hub's card says Apache-2.0.
        license="mit",
        prefix_tokens=0,
        regularisers=DROP_PATH,
    ),
    "convnext-tiny": Backbone(
        hub_id="facebook/convnext-tiny-224",
        model_type="convnext",
        head="classifier",
        features=lambda model: model.convnext.encoder.stages[-1],
        layer_groups=lambda model: _join_norms(
            [model.convnext.embeddings, *model.convnext.encoder.stages, model.convnext.layernorm]
        ),
        regularisers=DROP_PATH,
    ),
    "convnextv2-tiny": Backbone(
        hub_id="facebook/convnextv2-tiny-22k-224",
        model_type="convnextv2",
        head="classifier",
        features=lambda model: model.convnextv2.encoder.stages[-1],
        layer_groups=lambda model: _join_norms(
            [
                model.convnextv2.embeddings,
                *model.convnextv2.encoder.stages,
                model.convnextv2.layernorm,
            ]
        ),
        # By github.com/facebookresearch/ConvNeXt-V2; the Hub's card says Apache-2.0.
        license="cc-by-nc-4.0",
        regularisers=DROP_PATH,
    ),
    "mobilevit-small": Backbone(
        hub_id="apple/mobilevit-small",
        model_type="mobilevit",
        head="classifier",
        features=lambda model: model.mobilevit.conv_1x1_exp,
        layer_groups=lambda model: [
            model.mobilevit.conv_stem,
            *model.mobilevit.encoder.layer,
            model.mobilevit.conv_1x1_exp,
        ],
        license="other",  # Apple's own, as timm's "cvnets-license" and the Hub's card say
        # Pretrained on 0..1 as it is, in the order BGR: our three channels are alike.
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        regularisers={"dropout": "classifier_dropout_prob"},
        channels_last=True,
    ),
    "resnet50": _timm(
        "timm/resnet50.a1_in1k",
        "fc",
        config={"architecture": "resnet50"},
        regularisers=TIMM_RATES,
        channels_last=True,
    ),
    "efficientnet-b0": _timm(
        "timm/efficientnet_b0.ra_in1k",
        "classifier",
        config={"architecture": "efficientnet_b0"},
        regularisers=TIMM_RATES,
        channels_last=True,
    ),
    "efficientnet-b3": _timm(
        "timm/efficientnet_b3.ra2_in1k",
        "classifier",
        config={"architecture": "efficientnet_b3"},
        regularisers=TIMM_RATES,
        channels_last=True,
    ),
    "efficientnet-lite0": _timm(
        "timm/tf_efficientnet_lite0.in1k",
        "classifier",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        config={"architecture": "tf_efficientnet_lite0"},
        regularisers=TIMM_RATES,
        channels_last=True,
    ),
    "densenet121": _timm(
        "timm/densenet121.ra_in1k",
        "classifier",
        config={"architecture": "densenet121"},
        regularisers={"dropout": "drop_rate"},
        channels_last=True,
    ),
    # Any other model of timm: the weights tell which, and what they were normalised with.
    "timm": _timm(None, "?", license="other", regularisers=TIMM_RATES),
    "xray-cnn": Backbone(
        hub_id=None,
        model_type="xray_cnn",
        head="classifier",
        features=lambda model: model.blocks[-1],
        layer_groups=lambda model: list(model.blocks),
        # What X-rays are: measured on 200 of the Kermany set, rounded.
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
    return "bf16" if torch.cpu.get_capabilities().get("amx_bf16") else "fp32"


def backbone_of(model: PreTrainedModel) -> Backbone:
    """Return the entry of BACKBONES that a model belongs to.

    Models of timm go by their architecture; one without an entry of its own gets that of `timm`,
    with the names that timm tells of it.

    Raises:
        UserError: no entry knows this family.
    """
    config = model.config
    for backbone in BACKBONES.values():
        if backbone.model_type != config.model_type:
            continue
        if backbone.config.get("architecture") == getattr(config, "architecture", None):
            return backbone
    if config.model_type == "timm_wrapper":
        return _generic_timm(model)
    known = sorted({backbone.model_type for backbone in BACKBONES.values()})
    raise UserError(f"Models of type {config.model_type!r} are not known here; known are {known}.")


def freeze(model: PreTrainedModel, trainable_layer_groups: int | None) -> None:
    """Let only the last `trainable_layer_groups` groups and the head learn; None: everything."""
    for parameter in model.parameters():
        parameter.requires_grad = trainable_layer_groups is None
    if trainable_layer_groups is None:
        return
    groups = backbone_of(model).layer_groups(model)
    for module in [*groups[max(0, len(groups) - trainable_layer_groups) :], head_of(model)]:
        for parameter in module.parameters():
            parameter.requires_grad = True


def count_trainable(model: PreTrainedModel) -> tuple[int, int]:
    """Return how many weights of a model learn, and how many it has."""
    counts = [(one.numel(), one.requires_grad) for one in model.parameters()]
    return sum(n for n, learns in counts if learns), sum(n for n, _ in counts)


def grow_drop_path(model: PreTrainedModel) -> None:
    """Let the share of images that skip a block grow with the depth, from 0 to the config's rate.

    So does every other family here by itself (Huang et al. 2016); transformers' DINOv2 gives
    all blocks the same rate, and does so again whenever it is loaded.
    """
    if model.config.model_type != "dinov2":
        return
    layers = model.dinov2.encoder.layer
    for depth, layer in enumerate(layers):
        rate = model.config.drop_path_rate * depth / max(len(layers) - 1, 1)
        if hasattr(layer.drop_path, "drop_prob"):  # an Identity where the rate is 0
            layer.drop_path.drop_prob = rate


def head_of(model: PreTrainedModel) -> nn.Linear:
    """Return the last linear layer, whose two outputs are the logits."""
    return model.get_submodule(backbone_of(model).head)


def _generic_timm(model: PreTrainedModel) -> Backbone:
    from torch import nn

    head = model.timm_model.get_classifier()
    names = [name for name, module in model.named_modules() if module is head]
    if not names or not isinstance(head, nn.Linear):
        raise UserError(
            f"{model.config.architecture} does not end in one linear layer; choose another model."
        )
    return replace(
        BACKBONES["timm"],
        head=names[0],
        prefix_tokens=_timm_prefix_tokens(model.timm_model),
    )
