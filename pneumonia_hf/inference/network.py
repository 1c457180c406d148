"""Network: one loaded model with its processor and the settings of its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from PIL import Image

from pneumonia_hf.compat.torch import stamp_weights
from pneumonia_hf.errors import ModelError, SettingError
from pneumonia_hf.imaging.preprocess import to_pixel_values
from pneumonia_hf.inference.backends import Backend, Scorer, is_convolutional, make_scorer
from pneumonia_hf.inference.foreign import check_model
from pneumonia_hf.inference.frontal import KINDS
from pneumonia_hf.inference.gate import Gate, Layer, compute_features
from pneumonia_hf.inference.tta import TTA_TRANSFORMS, apply_transform
from pneumonia_hf.labels import LABELS, OTHER
from pneumonia_hf.models.model_folder import QUANTIZATION_FILE
from pneumonia_hf.statistics.thresholds import OperatingPoint

if TYPE_CHECKING:
    import torch
    from transformers import BaseImageProcessor, PreTrainedModel

# The key of config.json that holds our settings; transformers keeps unknown keys as they are.
CONFIG_KEY = "pneumonia_hf"
BATCH = 8  # images at once: larger batches leave a CPU's cache, and are slower
COMPARED = 8  # random images on which backends are compared and timed
# One computation at a time in a process: each takes all cores, and the hooks of one thread would
# see the images of another.
COMPUTING = RLock()
REFERENCES_KEY = "attribution_references"  # among our settings


class NetworkScores(NamedTuple):
    """What a network says of N images."""

    log_odds: np.ndarray  # of pneumonia: float64 [N]
    verdicts: np.ndarray  # of the gate, as of `Gate.judge`: [N, 1 + K]; NaN without one
    # Log odds of OTHER against the classes besides PNEUMONIA: [N]; NaN without such a class.
    other: np.ndarray


class Network:
    """One model with its processor: images -> log odds of pneumonia.

    Scores come from a copy of the weights, in which batch norms are folded, or from an export; it
    is made with the first score, and again when the weights have changed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        name: str = "model",
        path: Path | None = None,
        gate: Gate | None = None,
        positive_label: str = LABELS[1],
        backend: Backend = "torch",
        label_flag: str = "--positive_label",
        ranges: Path | None = None,
    ) -> None:
        """Take a model and processor that transformers has loaded, from `path` if any.

        `positive_label` is the name of the class of images with pneumonia, in any case; `backend`
        is what computes scores, of BACKENDS, or `auto`; `label_flag` is for messages; `ranges` is
        the file for the backend int8, by default the one in `path`.

        Raises:
            ModelError: the model has no such class; a gate of another network.
        """
        self.model = model.eval()
        self.processor = processor
        self.name = name  # for messages and reports
        self.path = path
        self.gate = gate
        self.backend = backend
        self.ranges = ranges or (path / QUANTIZATION_FILE if path else None)
        self._made: tuple[PreTrainedModel, tuple, Scorer] | None = None
        if gate and gate.layer.name not in dict(model.named_modules()):
            raise ModelError(
                f"The input gate of {name} is of another network; fit it with recalibrate.py."
            )
        self.class_index = _positive_index(model, name, positive_label, label_flag)
        names = {label.strip().upper(): int(i) for i, label in model.config.id2label.items()}
        self.other_index = names.get(OTHER)  # None without such a class
        self.settings: dict[str, Any] = getattr(model.config, CONFIG_KEY, None) or {}
        # The value of an attribution map that is shown at full brightness, by method.
        self.attribution_references: dict[str, float] = self.settings.get(REFERENCES_KEY, {})

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        device: str | None = None,
        positive_label: str = LABELS[1],
        backend: Backend = "torch",
        label_flag: str = "--positive_label",
    ) -> Network:
        """Return the network of a model folder; `device` defaults to the accelerator, if any.

        Raises:
            ModelError: the folder holds no usable model.
            SettingError: an unknown backend, or no such device.
        """
        if backend not in get_args(Backend):
            raise SettingError(
                f"Unknown backend {backend!r}; choose from {', '.join(get_args(Backend))}."
            )
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        from pneumonia_hf.models import xray_cnn  # noqa: F401  # registers its classes
        from pneumonia_hf.models.pretrained import explain_load_error, hide_progress_bars

        for file in ("config.json", "preprocessor_config.json"):
            if not (folder / file).exists():
                raise ModelError(f"{name} holds no saved model: {file} is missing.")
        try:
            # No remote code: a model folder must not run its own.
            with hide_progress_bars():
                model = AutoModelForImageClassification.from_pretrained(
                    folder, dtype=torch.float32, trust_remote_code=False
                )
            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            # transformers, safetensors and json each raise their own on damaged files.
            reason = explain_load_error(error)
            raise ModelError(f"The model in {name} cannot be loaded: {reason}") from error
        check_model(model, processor, name)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        gate = Gate.load(folder, name)
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:  # the second where torch has no CUDA
            reason = str(error).splitlines()[0].rstrip(".")
            raise SettingError(f"The device {device!r} cannot be used: {reason}.") from error
        return cls(model, processor, name, folder, gate, positive_label, backend, label_flag)

    @property
    def operating_point(self) -> OperatingPoint | None:
        """The operating point that was chosen for this network, or None."""
        return OperatingPoint.from_settings(self.settings) if self.settings else None

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the model's input for `images`, on its device: float32 [N, 3, H, W]."""
        return to_pixel_values(images, self.processor).to(self.model.device)

    def log_odds_of(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logit(PNEUMONIA) minus the log-sum-exp of the other logits: float64 [N].

        By the model itself, with gradients; `score` is faster.
        """
        return self._to_log_odds(self.model(pixel_values=pixel_values).logits.double())

    def _to_log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        from pneumonia_hf.models.activation_map import to_log_odds

        return to_log_odds(logits, self.class_index)

    def _to_other(self, logits: torch.Tensor) -> torch.Tensor:
        from pneumonia_hf.models.activation_map import to_log_odds

        if self.other_index is None:
            return logits.new_full((len(logits),), float("nan"))
        kept = [index for index in range(logits.shape[1]) if index != self.class_index]
        return to_log_odds(logits[:, kept], kept.index(self.other_index))

    def log_odds(
        self, images: Sequence[Image.Image], batch_size: int = BATCH, tta: bool = False
    ) -> np.ndarray:
        """Return the log odds of pneumonia of each image: float64 [N].

        With `tta`, the mean over the image itself and its TTA_TRANSFORMS.
        """
        return self.score(images, batch_size, tta)[0]

    def score(
        self,
        images: Sequence[Image.Image],
        batch_size: int = BATCH,
        tta: bool = False,
        alone: bool = False,
    ) -> NetworkScores:
        """Return the log odds as `log_odds` does, and what else the network says of the images.

        With `alone`, which needs `can_score_alone`, one core computes, and other threads may score
        at the same time.

        Raises:
            ModelError: a score is not finite.
        """
        import torch

        verdicts = [np.zeros((0, 1 + len(KINDS)))]
        scores: list[list[np.ndarray]] = [[np.zeros(0)], [np.zeros(0)]]  # log odds, and of OTHER
        compute = self._scorer.alone if alone else self._scorer
        for start in range(0, len(images), batch_size):
            with nullcontext() if alone else COMPUTING, torch.inference_mode():
                pixel_values = self.pixel_values(images[start : start + batch_size])
                logits, features = compute(pixel_values)
                versions = [logits]
                if tta:
                    changed = self._transformed(pixel_values)
                    versions += [compute(one)[0] for one in changed]
                stacked = [torch.from_numpy(one).double() for one in versions]
            for found, read in zip(scores, (self._to_log_odds, self._to_other), strict=True):
                found.append(torch.stack([read(one) for one in stacked]).mean(dim=0).numpy())
            verdicts.append(
                np.full((len(pixel_values), 1 + len(KINDS)), np.nan)
                if self.gate is None
                else self.gate.judge(features.astype(np.float64))
            )
        log_odds, other = map(np.concatenate, scores)
        if not np.isfinite(log_odds).all():  # it would be called NORMAL
            raise ModelError(f"The scores of {self.name} are not finite; its weights are broken.")
        return NetworkScores(log_odds, np.concatenate(verdicts), other)

    @property
    def can_score_alone(self) -> bool:
        """Whether several threads may score at the same time, each on one core."""
        return self._scorer.alone is not None

    @property
    def _scorer(self) -> Scorer:
        """What computes logits and the gate's features."""
        stamp = stamp_weights(self.model)
        if self._made is None or self._made[0] is not self.model or self._made[1] != stamp:
            self._made = (self.model, stamp, self._make_scorer())
        return self._made[2]

    def _make_scorer(self) -> Scorer:
        generator = np.random.default_rng(0)
        size = self.processor.size
        shape = (size.get("height", size.get("shortest_edge", 224)), size.get("width", 224))
        drawn = generator.integers(0, 256, (COMPARED, *shape), dtype=np.uint8)
        images = self.pixel_values([Image.fromarray(one) for one in drawn])
        layer = self.gate and self.gate.layer
        with COMPUTING:
            return make_scorer(self.model, images, layer, self.backend, self.ranges)

    def features(self, images: Sequence[Image.Image], layer: Layer) -> np.ndarray:
        """Return what the gate knows of each image: float64 [N, F], of `compute_features`."""
        import torch

        with COMPUTING, torch.inference_mode():
            pixel_values = self.pixel_values(images)
            if is_convolutional(self.model):  # twice as fast on a CPU
                pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
            batches = pixel_values.split(BATCH)
            return np.concatenate([compute_features(self.model, layer, one) for one in batches])

    def _transformed(self, pixel_values: torch.Tensor) -> Iterator[torch.Tensor]:
        # The normalised value of black, the same everywhere: [1, 3, 1, 1].
        black = self.pixel_values([Image.new("L", (64, 64))])[..., :1, :1]
        return (apply_transform(pixel_values, one, black) for one in TTA_TRANSFORMS)


def _positive_index(model: PreTrainedModel, name: str, wanted: str, flag: str) -> int:
    """Return the class number of a class: public models of this task differ in their order."""
    labels = model.config.id2label
    names = {label.strip().upper() for label in labels.values()}
    if wanted.strip().upper() == LABELS[0] and LABELS[1] in names:
        raise ModelError(f"{name} has a class {LABELS[1]}; {flag} cannot be {LABELS[0]}.")
    for index, label in labels.items():
        if label.strip().upper() == wanted.strip().upper():
            return int(index)
    raise ModelError(
        f"{name} has no class named {wanted} (its classes: {', '.join(labels.values())}); "
        f"give a model of this task, or the name of its class as {flag}."
    )
