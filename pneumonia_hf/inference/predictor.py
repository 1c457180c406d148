"""Predictor: a model folder and everything that turns a picture into a decision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.imaging import input_checks as gate
from pneumonia_hf.imaging.preprocess import to_pixel_values
from pneumonia_hf.imaging.read import read_xray
from pneumonia_hf.inference.operating_point import OperatingPoint, to_probability
from pneumonia_hf.inference.tta import VIEWS, make_view, tta_caveats

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import BaseImageProcessor, PreTrainedModel

# The key of config.json that holds what is ours; transformers keeps unknown keys as they are.
CONFIG_KEY = "pneumonia_hf"
CHUNK = 32  # files in memory at a time
NO_THRESHOLD = "This model carries no chosen threshold: 0.5 is used."
Decision = Literal["PNEUMONIA", "NORMAL", "REFER"]


@dataclass(frozen=True)
class Prediction:
    """What the model says of one picture."""

    label: str  # PNEUMONIA or NORMAL: the side of the threshold
    probability: float  # calibrated P(pneumonia), 0..1
    threshold: float  # from here on up the label is PNEUMONIA
    decision: Decision  # the label, or REFER where a person must look
    warnings: tuple[str, ...]  # why it is referred, and other doubts; a sentence each


class Predictor:
    """A model with its processor and its operating point, ready to score images.

    For 8-bit grayscale files a plain transformers pipeline gives the same probability; other files
    (16-bit, coloured, DICOM) are read by `read_xray` alone as they should be.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        name: str = "model",
        path: Path | None = None,
        tta: bool = False,
    ) -> None:
        """Take a model and processor that are already loaded.

        Args:
            model, processor: as transformers loads them.
            name: for people to read.
            path: the folder that they come from, if any.
            tta: test-time augmentation: the margin of a picture is the mean of its own and those
                of its VIEWS. It takes five times as long. The threshold stays the model's own,
                which was chosen without, unless `tta` stands beside it in config.json.

        Raises:
            UserError: none of the model's labels is PNEUMONIA.
        """
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.path = path
        self.tta = tta
        self.class_index = _pneumonia_index(model, name)
        settings = getattr(model.config, CONFIG_KEY, None)
        self.has_threshold = bool(settings)
        settings = settings or {"threshold": 0.5, "refer_low": 0.5, "refer_high": 0.5}
        self.operating_point = OperatingPoint(
            settings["threshold"], settings["refer_low"], settings["refer_high"]
        )
        # What full brightness of an attribution map stands for, by method.
        self.attribution_references: dict[str, float] = settings.get("attribution_references", {})
        # What is to be known of every answer, a sentence each.
        self.caveats = () if self.has_threshold else (NO_THRESHOLD,)
        self.caveats += tta_caveats(tta, self.has_threshold, bool(settings.get("tta")))

    @property
    def members(self) -> tuple[Predictor, ...]:
        """The single models that score: this one; those of an ensemble."""
        return (self,)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path | Sequence[str | Path],
        revision: str | None = None,
        device: str | None = None,
        tta: bool = False,
    ) -> Predictor:
        """Load a model folder, or a Hub id with an optional `@revision`, or several as an ensemble.

        Args:
            path_or_id: a local folder, `owner/name` or `owner/name@revision`; a folder with an
                `ensemble.json`; or several models, whose margins are averaged.
            revision: a branch, tag or commit of the Hub, for one model only.
            device: a torch device; left out, the accelerator if there is one.
            tta: test-time augmentation, as in the constructor.

        Raises:
            UserError: no such model, an unreachable Hub, or a folder without a usable model.
        """
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        from pneumonia_hf.hub import fetch_folder
        from pneumonia_hf.inference.ensemble import load_ensemble, load_several
        from pneumonia_hf.models import xray_cnn  # noqa: F401  # registers its classes
        from pneumonia_hf.models.model_folder import ENSEMBLE_FILE

        if not isinstance(path_or_id, str | Path):
            if len(path_or_id) != 1:
                return load_several(path_or_id, revision, device, tta)
            path_or_id = path_or_id[0]
        folder = fetch_folder(path_or_id, revision)
        if revision and folder != Path(path_or_id).expanduser():
            # So that people see which one it is.
            path_or_id = f"{str(path_or_id).partition('@')[0]}@{revision}"
        if (folder / ENSEMBLE_FILE).exists():
            return load_ensemble(folder, str(path_or_id), device, tta)
        for name in ("config.json", "preprocessor_config.json"):
            if not (folder / name).exists():
                raise UserError(f"{path_or_id} holds no finished model: {name} is missing.")
        try:
            # No trust: a model folder must not run code.
            model = AutoModelForImageClassification.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False
            )
            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            # transformers, safetensors and json each raise their own on damaged files.
            raise UserError(
                f"The model in {path_or_id} cannot be loaded: {str(error).splitlines()[0]}"
            ) from error
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), processor, name=str(path_or_id), path=folder, tta=tta)

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the model's input for `images`, on its device: float32 [N, 3, H, W]."""
        return to_pixel_values(images, self.processor).to(self.model.device)

    def margins(self, images: Sequence[Image.Image], batch_size: int = 32) -> np.ndarray:
        """Return logit(PNEUMONIA) less that of all else, of each image: float64 [N].

        With test-time augmentation, the mean over the image itself and its VIEWS.
        """
        import torch

        margins = []
        for start in range(0, len(images), batch_size):
            with torch.inference_mode():
                pixel_values = self.pixel_values(images[start : start + batch_size])
                margin = self._margins_of(pixel_values)
                if self.tta:
                    views = [self._margins_of(view) for view in self._make_views(pixel_values)]
                    margin = np.mean([margin, *views], axis=0)
            margins.append(margin)
        return np.concatenate(margins) if margins else np.zeros(0)

    def _margins_of(self, pixel_values: torch.Tensor) -> np.ndarray:
        import torch

        logits = self.model(pixel_values=pixel_values).logits.cpu().double()
        others = torch.ones(logits.shape[1], dtype=torch.bool)
        others[self.class_index] = False
        return (logits[:, self.class_index] - logits[:, others].logsumexp(dim=1)).numpy()

    def _make_views(self, pixel_values: torch.Tensor) -> Iterator[torch.Tensor]:
        from PIL import Image

        # What black is once normalised: it is the same everywhere, [1, 3, 1, 1].
        black = self.pixel_values([Image.new("L", (64, 64))])[..., :1, :1]
        return (make_view(pixel_values, view, black) for view in VIEWS)

    def probabilities(self, images: Sequence[Image.Image], batch_size: int = 32) -> np.ndarray:
        """Return the calibrated P(pneumonia) of each image, in input order: float64 [N]."""
        return to_probability(self.margins(images, batch_size))

    def predict(self, image: Image.Image) -> Prediction:
        """Return the decision on one picture, as `read_xray` returns it."""
        return self.predict_all([image])[0]

    def predict_all(self, images: Sequence[Image.Image]) -> list[Prediction]:
        """Return the decision on each picture, in input order."""
        return [
            self._decide(image, float(probability))
            for image, probability in zip(images, self.probabilities(images), strict=True)
        ]

    def predict_files(self, paths: Sequence[Path]) -> Iterator[Prediction | XrayError]:
        """Yield the decision on each file, in order, or the error of one that cannot be read."""
        return self.predict_pictures((None, path) for path in paths)

    def predict_pictures(
        self, pictures: Iterable[tuple[str | None, Path | bytes | XrayError]]
    ) -> Iterator[Prediction | XrayError]:
        """Yield the decision on each picture, in order, or the error of one that cannot be read.

        Pictures are read in parallel, a few dozen in memory at a time.

        Args:
            pictures: names and undecoded pictures, as `open_pictures` yields them.
        """
        for readings in _read_in_chunks(pictures):
            readable = [one for one in readings if not isinstance(one, XrayError)]
            predictions = iter(self.predict_all(readable))
            for one in readings:
                yield one if isinstance(one, XrayError) else next(predictions)

    def margins_of_pictures(
        self, pictures: Iterable[tuple[str | None, Path | bytes | XrayError]]
    ) -> np.ndarray:
        """Return the margin of each picture, as `margins` does, a few dozen in memory at a time.

        Raises:
            XrayError: a picture cannot be read.
        """
        margins = []
        for readings in _read_in_chunks(pictures):
            for one in readings:
                if isinstance(one, XrayError):
                    raise one
            margins.append(self.margins(readings))
        return np.concatenate(margins)

    def _decide(self, image: Image.Image, probability: float) -> Prediction:
        point = self.operating_point
        label = "PNEUMONIA" if probability >= point.threshold else "NORMAL"
        reasons = list(gate.doubts(image))
        if point.low <= probability < point.high:
            reasons.append(
                f"Too close to the threshold: which side of it a probability from "
                f"{point.low:.3f} to {point.high:.3f} is on hangs on a few validation pictures."
            )
        decision = "REFER" if reasons else label
        return Prediction(label, probability, point.threshold, decision, (*reasons, *self.caveats))


def _read_in_chunks(
    pictures: Iterable[tuple[str | None, Path | bytes | XrayError]],
) -> Iterator[list[Image.Image | XrayError]]:
    pictures = iter(pictures)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(pictures, CHUNK)):
            yield list(pool.map(_try_to_read, chunk))


def _try_to_read(picture: tuple[str | None, Path | bytes | XrayError]) -> Image.Image | XrayError:
    name, source = picture
    if isinstance(source, XrayError):
        return source
    try:
        return read_xray(source, name)
    except XrayError as error:
        return error


def _pneumonia_index(model: PreTrainedModel, name: str) -> int:
    """Return the class number of PNEUMONIA: public models of this task differ in their order."""
    labels = model.config.id2label
    for index, label in labels.items():
        if label.upper() == "PNEUMONIA":
            return int(index)
    raise UserError(
        f"{name} has no class named PNEUMONIA (its classes: {', '.join(labels.values())}); "
        f"give a model of this task."
    )
