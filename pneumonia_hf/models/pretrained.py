"""Load pretrained weights from a folder, and check them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import ModelError
from pneumonia_hf.hub import find_weights
from pneumonia_hf.labels import LABELS, OTHER
from pneumonia_hf.models.backbones import BACKBONES, backbone_of, head_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def label_settings(other_class: bool = False) -> dict[str, Any]:
    """Return the settings of a model's config that name the classes; a third one is OTHER."""
    names = (*LABELS, OTHER) if other_class else LABELS
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
    }


def timm_config(
    architecture: str,
    model_args: dict[str, Any] | None,
    rates: dict[str, float],
    other_class: bool = False,
) -> PreTrainedConfig:
    """Return the config of a timm model; `rates` are its regularisers under timm's names."""
    from transformers import TimmWrapperConfig

    model_args = {**(model_args or {}), **rates} or None
    labels = label_settings(other_class)
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, **labels)


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, such as "Loading weights"."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def explain_load_error(error: Exception) -> str:
    """Return in a line why a model cannot be loaded."""
    if isinstance(error, UnpicklingError):  # torch's text advises to run the code in the file
        return "its pickled weights are damaged, or hold more than tensors; give safetensors."
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_body(
    name: str, folder: Path, rates: dict[str, float], other_class: bool = False
) -> PreTrainedModel:
    """Return the backbone `name` with the weights in `folder` and a new head.

    Raises:
        ModelError: no weights, damaged weights, or weights of another family.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    from pneumonia_hf.models import xray_cnn  # noqa: F401  # registers its classes

    backbone = BACKBONES[name]
    architecture = backbone.config.get("architecture")
    if architecture and not (folder / "config.json").exists():
        return _load_bare_weights(timm_config(architecture, None, rates, other_class), folder)
    try:
        # A folder of weights must not run code.
        labels = label_settings(other_class)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **labels)
        if config.model_type != backbone.model_type:
            raise ModelError(
                f"{folder} holds a model of type {config.model_type!r}, "
                f"but this backbone is of type {backbone.model_type!r}; change one of them."
            )
        if config.model_type == "timm_wrapper":
            is_test_model = config.architecture.startswith("test_")  # timm's tiny models
            if architecture and config.architecture != architecture and not is_test_model:
                raise ModelError(
                    f"{folder} holds a {config.architecture}, but this backbone is "
                    f"{architecture}; use --backbone timm for it."
                )
            # A new config: timm's would bring its own classes and a processor that crops.
            config = timm_config(config.architecture, config.model_args, rates, other_class)
        else:
            for key, rate in rates.items():
                setattr(config, key, rate)
            # DeiT's weights name a class with two heads, which cannot be trained. Without a name,
            # transformers takes the family's first class.
            config.architectures = []
        with hide_progress_bars():
            model, loading = AutoModelForImageClassification.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,  # also for weights in half precision
                ignore_mismatched_sizes=True,  # the head of another task
                output_loading_info=True,
                trust_remote_code=False,
            )
    except ModelError:
        raise
    except Exception as error:
        # Damaged files have no common class of errors; settings or an architecture that this timm
        # does not know raise TypeError or ImportError.
        raise ModelError(f"No usable weights in {folder}: {explain_load_error(error)}") from error
    head = backbone_of(model).head
    absent = sorted(key for key in loading["missing_keys"] if not key.startswith(head))
    if absent:
        raise ModelError(
            f"The weights in {folder} lack {len(absent)} tensors of this backbone "
            f"({absent[0]}, ...); give weights of {backbone.hub_id or name}."
        )
    mismatched = {key for key, *_ in loading["mismatched_keys"]}
    if f"{head}.weight" not in mismatched | set(loading["missing_keys"]):
        # These weights have a head for as many classes, perhaps others: initialise ours.
        torch.nn.init.trunc_normal_(head_of(model).weight, std=0.02)
        torch.nn.init.zeros_(head_of(model).bias)
    return model


def timm_statistics(
    folder: Path, model: PreTrainedModel
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and standard deviation that timm weights were pretrained with.

    They come from the processor of a model that was trained here, else from the `config.json` of
    a timm model, else from timm's defaults for the architecture.
    """
    from pneumonia_hf.files import read_json

    processor = read_json(folder / "preprocessor_config.json", otherwise={})
    if "image_mean" in processor:
        return processor["image_mean"], processor["image_std"]
    saved = read_json(folder / "config.json", otherwise={}).get("pretrained_cfg") or {}
    defaults = model.timm_model.pretrained_cfg
    return tuple(saved.get(key) or defaults[key] for key in ("mean", "std"))


def _load_bare_weights(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Load a timm state dict from a folder without a config.json."""
    from transformers import AutoModelForImageClassification
    from transformers.modeling_utils import load_state_dict  # of pickled files, only tensors

    model = AutoModelForImageClassification.from_config(config).eval()
    files = find_weights(folder)
    if not files:
        raise ModelError(f"No usable weights in {folder}: model.safetensors is missing.")
    try:
        state = {key: value for file in files for key, value in load_state_dict(file).items()}
    except Exception as error:  # of any class, on damaged files
        raise ModelError(f"No usable weights in {folder}: {explain_load_error(error)}") from error
    prefix = backbone_of(model).head.removeprefix("timm_model.")
    head = {f"{prefix}.weight", f"{prefix}.bias"}
    body = {key: value.float() for key, value in state.items() if key not in head}
    missing, unexpected = model.timm_model.load_state_dict(body, strict=False)
    wrong = sorted(set(missing) - head) + sorted(unexpected)
    if wrong:
        raise ModelError(
            f"The weights in {folder} are not those of {config.architecture} ({wrong[0]})."
        )
    return model
