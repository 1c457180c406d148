"""BACKBONES: the model families, where their feature maps are, how they split into stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.rows import LABELS

if TYPE_CHECKING:
    from torch import nn
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
NO_WEIGHTS = "none"  # said in the place of weights: draw all of them at random


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
    stages: Callable[[PreTrainedModel], list[nn.Module]]
    license: str = "apache-2.0"  # of the pretrained weights, and so of what is made from them
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    # Tokens before those of the patches; None where the feature map is a [N, C, h, w] grid.
    prefix_tokens: int | None = None
    resizable: bool = True  # takes pictures of another size than it was pretrained on
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
        return own.bn2  # the EfficientNets widen the last stage's map once more
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


def _timm_stages(model: PreTrainedModel) -> list[nn.Module]:
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


def _join_norms(stages: list[nn.Module]) -> list[nn.Module]:
    """Return `stages` with bare normalisation layers joined to the one before, or else after.

    "The last stage" would else be a few hundred weights that learn next to nothing.
    """
    from torch import nn

    joined: list[list[nn.Module]] = []
    leading: list[nn.Module] = []  # norms before anything else
    for stage in stages:
        if not _is_norm(stage):
            joined.append([*leading, stage])
            leading = []
        elif joined:
            joined[-1].append(stage)
        else:
            leading.append(stage)
    return [group[0] if len(group) == 1 else nn.ModuleList(group) for group in joined]


def _is_norm(stage: nn.Module) -> bool:
    """Return whether all parameters of a module belong to normalisation layers."""
    owners = [one for one in stage.modules() if list(one.parameters(recurse=False))]
    return bool(owners) and all("Norm" in type(one).__name__ for one in owners)


def _timm(hub_id: str | None, classifier: str, **others) -> Backbone:
    """Return the entry of a model of the timm library, by transformers' wrapper around it."""
    return Backbone(
        hub_id=hub_id,
        model_type="timm_wrapper",
        head=f"timm_model.{classifier}",
        features=_timm_features,
        stages=_timm_stages,
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
        stages=lambda model: _join_norms(
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
        stages=lambda model: _join_norms(
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
        stages=lambda model: _join_norms(
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
        stages=lambda model: _join_norms(
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
        stages=lambda model: _join_norms(
            [model.convnext.embeddings, *model.convnext.encoder.stages, model.convnext.layernorm]
        ),
        regularisers=DROP_PATH,
    ),
    "convnextv2-tiny": Backbone(
        hub_id="facebook/convnextv2-tiny-22k-224",
        model_type="convnextv2",
        head="classifier",
        features=lambda model: model.convnextv2.encoder.stages[-1],
        stages=lambda model: _join_norms(
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
        stages=lambda model: [
            model.mobilevit.conv_stem,
            *model.mobilevit.encoder.layer,
            model.mobilevit.conv_1x1_exp,
        ],
        license="other",  # Apple's own, as timm's "cvnets-license" and the Hub's card say
        # Pretrained on 0..1 as it is, in the order BGR: our three channels are alike.
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        regularisers={"dropout": "classifier_dropout_prob"},
    ),
    "resnet50": _timm(
        "timm/resnet50.a1_in1k",
        "fc",
        config={"architecture": "resnet50"},
        regularisers=TIMM_RATES,
    ),
    "efficientnet-b0": _timm(
        "timm/efficientnet_b0.ra_in1k",
        "classifier",
        config={"architecture": "efficientnet_b0"},
        regularisers=TIMM_RATES,
    ),
    "efficientnet-b3": _timm(
        "timm/efficientnet_b3.ra2_in1k",
        "classifier",
        config={"architecture": "efficientnet_b3"},
        regularisers=TIMM_RATES,
    ),
    "efficientnet-lite0": _timm(
        "timm/tf_efficientnet_lite0.in1k",
        "classifier",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        config={"architecture": "tf_efficientnet_lite0"},
        regularisers=TIMM_RATES,
    ),
    "densenet121": _timm(
        "timm/densenet121.ra_in1k",
        "classifier",
        config={"architecture": "densenet121"},
        regularisers={"dropout": "drop_rate"},
    ),
    # Any other model of timm: the weights tell which, and what they were normalised with.
    "timm": _timm(None, "?", license="other", regularisers=TIMM_RATES),
    "xray-cnn": Backbone(
        hub_id=None,
        model_type="xray_cnn",
        head="classifier",
        features=lambda model: model.blocks[-1],
        stages=lambda model: list(model.blocks),
        # What films are: measured on 200 of the Kermany set, rounded.
        mean=HALF,
        std=(0.25, 0.25, 0.25),
        regularisers={"dropout": "dropout"},
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
            "help": "Pretrained weights: a local folder or a Hub id with an optional @revision; "
            "none: drawn at random. Left out, the backbone's own Hub id, if it has one."
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Pixels a side; left out, 224 or the weights' own size."}
    )
    trainable_stages: int | None = field(
        default=None,
        metadata={"help": "Train only the last N stages and the head (0: the head alone)."},
    )
    channels_last: bool | None = field(
        default=None,
        metadata={
            "help": "Keep tensors as [N, H, W, C] in memory: quicker for convolutions. "
            "Left out, what was measured to be quicker.",
            # So that the flag may stand alone, as one that is True or False may.
            "nargs": "?",
            "const": True,
        },
    )
    drop_path: float | None = field(
        default=None,
        metadata={
            "help": "Share of the pictures that skip a block in training (stochastic depth), "
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
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size is {self.image_size}; give a number of pixels.")
        if self.trainable_stages is not None and self.trainable_stages < 0:
            raise UserError(f"trainable_stages is {self.trainable_stages}; give 0 or more.")
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
    from pneumonia_hf.preprocess import make_processor

    if config.backbone not in BACKBONES:
        raise UserError(f"Unknown backbone {config.backbone!r}; choose from {sorted(BACKBONES)}.")
    backbone = BACKBONES[config.backbone]
    weights = config.weights or backbone.hub_id or NO_WEIGHTS
    rates = _rates_of(config)
    mean, std = backbone.mean, backbone.std
    if weights != NO_WEIGHTS:
        folder = fetch_folder(weights, what="weights", flag="--weights")
        model = _load_body(config.backbone, folder, rates)
        if config.backbone == "timm":
            mean, std = _timm_statistics(folder, model.config.architecture)
    elif config.backbone == "timm":
        raise UserError("Tell which model of timm: --weights timm/NAME, or a folder of one.")
    else:
        model = _draw_model(backbone, rates)
    image_size = config.image_size or 224
    if not backbone.resizable:
        native = model.config.image_size
        if config.image_size not in (None, native):
            raise UserError(
                f"{config.backbone} takes pictures of {native} pixels only; leave --image_size out."
            )
        image_size = native
    _check_size(model, config.backbone, image_size)
    grow_drop_path(model)
    freeze(model, config.trainable_stages)
    if config.channels_last:
        import torch

        model = model.to(memory_format=torch.channels_last)
    return model, make_processor(image_size, mean, std)


def fast_precision(device: str | None = None) -> str:
    """Return the precision that this machine multiplies fastest in: bf16, fp16 or fp32.

    Args:
        device: the type of device, such as cpu; left out, the accelerator if there is one.
    """
    import torch

    if device == "cpu":
        pass
    elif torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif torch.accelerator.is_available():
        return "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


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


def freeze(model: PreTrainedModel, trainable_stages: int | None) -> None:
    """Leave gradients to the last `trainable_stages` stages and the head only; None: to all."""
    for parameter in model.parameters():
        parameter.requires_grad = trainable_stages is None
    if trainable_stages is None:
        return
    stages = backbone_of(model).stages(model)
    for module in [*stages[max(0, len(stages) - trainable_stages) :], head_of(model)]:
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


def _labels() -> dict[str, Any]:
    return {
        "num_labels": len(LABELS),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: label for label, name in enumerate(LABELS)},
    }


def _timm_config(
    architecture: str, model_args: dict[str, Any] | None, rates: dict[str, float]
) -> PreTrainedConfig:
    from transformers import TimmWrapperConfig

    model_args = {**(model_args or {}), **rates} or None
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, **_labels())


def _draw_model(backbone: Backbone, rates: dict[str, float]) -> PreTrainedModel:
    """Return a model of the published size with all weights drawn at random."""
    from torch import nn
    from transformers import AutoConfig, AutoModelForImageClassification

    from pneumonia_hf import xray_cnn  # noqa: F401  # registers its classes

    if backbone.model_type == "timm_wrapper":
        config = _timm_config(backbone.config["architecture"], None, rates)
    else:
        settings = {**backbone.config, **rates, **_labels()}
        config = AutoConfig.for_model(backbone.model_type, architectures=[], **settings)
    model = AutoModelForImageClassification.from_config(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and backbone.model_type == "mobilevit":
            # transformers draws these around 0, so that each layer lets a fiftieth through and
            # the network says the same of all pictures.
            nn.init.ones_(module.weight)
    return model.eval()  # as a loaded one is


def _load_body(name: str, folder: Path, rates: dict[str, float]) -> PreTrainedModel:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageClassification

    from pneumonia_hf import xray_cnn  # noqa: F401  # registers its classes

    backbone = BACKBONES[name]
    architecture = backbone.config.get("architecture")
    if architecture and not (folder / "config.json").exists():
        return _load_bare_weights(_timm_config(architecture, None, rates), folder)
    try:
        # No trust: a folder of weights must not run code.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **_labels())
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
            config = _timm_config(config.architecture, config.model_args, rates)
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


def _timm_statistics(folder: Path, architecture: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of what timm weights were pretrained on.

    The folder of a model that was trained here tells it in its processor, one of timm in its
    config; else it is what timm knows of the architecture.
    """
    from timm.models import get_pretrained_cfg

    from pneumonia_hf.hub import read_json

    processor = read_json(folder / "preprocessor_config.json", otherwise={})
    if "image_mean" in processor:
        return processor["image_mean"], processor["image_std"]
    told = read_json(folder / "config.json", otherwise={}).get("pretrained_cfg") or {}
    known = get_pretrained_cfg(architecture)
    mean = told.get("mean") or (known.mean if known else IMAGENET_MEAN)
    std = told.get("std") or (known.std if known else IMAGENET_STD)
    return mean, std


def _check_size(model: PreTrainedModel, name: str, image_size: int) -> None:
    """Raise a UserError if the model cannot take pictures of this size."""
    import torch

    try:
        with torch.inference_mode():
            model(pixel_values=torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} cannot take pictures of {image_size} pixels ({reason}); "
            f"give another --image_size."
        ) from error


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
