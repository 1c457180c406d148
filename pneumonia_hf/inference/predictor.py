"""Predictor: one or several networks that turn an image into a decision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pneumonia_hf.errors import ModelError, SettingError, XrayError
from pneumonia_hf.files import read_json
from pneumonia_hf.hub import public_name
from pneumonia_hf.imaging.read import to_xray
from pneumonia_hf.imaging.xray import Xray
from pneumonia_hf.inference.backends import Backend
from pneumonia_hf.inference.foreign import list_caveats
from pneumonia_hf.inference.frontal import find_refusal
from pneumonia_hf.inference.network import BATCH, Network, NetworkScores
from pneumonia_hf.inference.read_ahead import (
    UndecodedImage,
    cut,
    map_ahead,
    read_in_chunks,
    try_to_read,
)
from pneumonia_hf.inference.tta import tta_reasons
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE
from pneumonia_hf.reasons import REFUSING, Caveat, Reason
from pneumonia_hf.statistics.log_odds import to_logit, to_probability
from pneumonia_hf.statistics.thresholds import OperatingPoint

FLAGS = ("--model", "--positive_label")  # of the scripts

Decision = Literal["PNEUMONIA", "NORMAL", "REFER", "REFUSED"]
Source = Image.Image | Xray | str | Path | bytes  # of a path or bytes, the file is read
# Of a prediction in the app's answers.
FIELDS = (
    *("label", "probability", "threshold", "decision", "warnings", "distance"),
    "other_abnormal",
)


@dataclass(frozen=True)
class Prediction:
    """The decision on one image."""

    label: str | None  # PNEUMONIA or NORMAL: the side of the threshold; None if REFUSED
    probability: float | None  # calibrated P(pneumonia), 0..1; None if REFUSED
    threshold: float  # the label is PNEUMONIA at or above it
    decision: Decision  # the label; REFER to a person; or REFUSED: no frontal chest X-ray
    caveats: tuple[Caveat, ...]  # reasons for the decision and other reservations
    # From the training images, in the gate's limits: from 1 on, REFER; None without a gate.
    distance: float | None = None
    # P(abnormal without pneumonia), 0..1; None if REFUSED, and of models without such a class
    other_abnormal: float | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """The caveats, a sentence each."""
        return tuple(caveat.sentence for caveat in self.caveats)

    @property
    def reasons(self) -> frozenset[Reason]:
        """The caveats without their sentences."""
        return frozenset(caveat.reason for caveat in self.caveats)

    def to_dict(self) -> dict[str, Any]:
        """Return FIELDS, for JSON."""
        return {name: getattr(self, name) for name in FIELDS}


class Predictor:
    """One or several networks with an operating point, ready to score images.

    Several networks form an ensemble: its log odds are the mean over its networks, which are
    calibrated one by one and may differ in family and input size.

    For 8-bit grayscale files a plain transformers pipeline gives the same probability as a
    predictor of one network; 16-bit, coloured and DICOM files need `read_xray`.
    """

    def __init__(
        self,
        *networks: Network,
        name: str | None = None,
        path: Path | None = None,
        tta: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Take networks that are already loaded.

        Args:
            networks: one, or the members of an ensemble.
            name: for messages and reports; by default made of the networks' names.
            path: the folder they were loaded from, if any.
            tta: test-time augmentation: log odds are the mean over the image and its
                TTA_TRANSFORMS, at five times the cost. The threshold was chosen without it,
                unless the model's settings hold `tta`.
            settings: of an ensemble, also of one network: `threshold`, `refer_low`, `refer_high`
                and, optionally, the `temperature` that divides the mean log odds. By default the
                operating point is that of the network, or the mean of theirs on the logit scale.
        """
        # A network with settings of an ensemble is one: its own threshold holds for its own
        # temperature only.
        single = networks[0] if len(networks) == 1 and not settings else None
        self.is_ensemble = single is None
        self.networks = networks
        self.name = name or (
            single.name if single else " + ".join(public_name(one.name) for one in networks)
        )
        self.path = path or (single.path if single else None)
        self.tta = tta
        chosen = single.settings if single else settings
        self.has_threshold = bool(chosen)
        self.temperature = float((settings or {}).get("temperature", 1))
        self.operating_point = (
            OperatingPoint.from_settings(chosen)
            if chosen
            else _mean_point([n.operating_point for n in networks])
        )
        reasons = ()
        if not self.has_threshold:
            reasons = (Reason.NO_THRESHOLD,) if single else (Reason.NO_COMMON_THRESHOLD,)
            if not single and not all(network.settings for network in networks):
                reasons += (Reason.NO_OWN_THRESHOLD,)
        reasons += tta_reasons(
            tta, self.has_threshold or not single, bool((chosen or {}).get("tta"))
        )
        own = [one for net in networks for one in list_caveats(net.model, net.processor)]
        # About every prediction.
        self.caveats = tuple(dict.fromkeys([*(one.caveat() for one in reasons), *own]))

    @property
    def network(self) -> Network:
        """The only network.

        Raises:
            ModelError: this is an ensemble.
        """
        if self.is_ensemble:
            raise ModelError(f"{self.name} is an ensemble; give one of its members.")
        return self.networks[0]

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path | Sequence[str | Path],
        revision: str | None = None,
        device: str | None = None,
        tta: bool = False,
        positive_label: str | Sequence[str] = LABELS[1],
        backend: Backend = "torch",
        flags: tuple[str, str] = FLAGS,
    ) -> Predictor:
        """Load a model folder or Hub model, or several as an ensemble.

        Args:
            path_or_id: a local folder, `owner/name`, `owner/name@revision` or the address of a
                model's page; a folder with an `ensemble.json`; or several models, whose log odds
                are averaged.
            revision: a branch, tag or commit of the Hub, for one model only.
            device: a torch device; by default the accelerator, if any.
            tta: test-time augmentation, as in the constructor.
            positive_label: the class of images with pneumonia, for models of other projects; of
                an ensemble one for all, or one for each.
            backend: what computes scores: torch; onnx or openvino, which are faster on a CPU and
                need their packages and some seconds when the first image is scored; or auto, the
                quickest of those that are installed.
            flags: what the user names the model and the class with, for messages.

        Raises:
            UserError: no such model, backend or device, an unreachable Hub, an unusable model, an
                ensemble within a list, one revision for several models, or not a class for each.
        """
        from pneumonia_hf.hub import fetch_folder, to_hub_id

        if not isinstance(path_or_id, str | Path) and len(path_or_id) == 1:
            (path_or_id,) = path_or_id
        if not isinstance(path_or_id, str | Path):
            if not path_or_id:
                raise SettingError("An ensemble needs one or more models; none is given.")
            if revision is not None:
                raise SettingError(
                    "A revision applies to one model; give each model its own, as owner/name@v1."
                )
            members = [
                cls.from_pretrained(one, None, device, False, label, backend, flags)
                for one, label in _pair(path_or_id, positive_label, flags[1])
            ]
            for one, member in zip(path_or_id, members, strict=True):
                if member.is_ensemble:
                    raise ModelError(f"{one} is an ensemble itself; give its members instead.")
            return cls(*(member.network for member in members), tta=tta)
        if isinstance(path_or_id, str):
            path_or_id = to_hub_id(path_or_id, flags[0])
        folder = fetch_folder(path_or_id, revision, flag=flags[0])
        name = str(path_or_id)
        if revision and folder != Path(path_or_id).expanduser():
            name = f"{name.partition('@')[0]}@{revision}"
        if not (folder / ENSEMBLE_FILE).exists():
            ((_, label),) = _pair([name], positive_label, flags[1])
            return cls(Network.load(folder, name, device, label, backend, flags[1]), tta=tta)
        settings = _read_ensemble(folder, name)
        members = [folder / member for member in settings["members"]]
        networks = [
            Network.load(member, str(member), device, label, backend, flags[1])
            for member, label in _pair(members, positive_label, flags[1])
        ]
        return cls(*networks, name=name, path=folder, tta=tta, settings=settings)

    def log_odds(self, images: Sequence[Image.Image], batch_size: int = BATCH) -> np.ndarray:
        """Return the log odds of pneumonia of each image: float64 [N].

        For an ensemble, the mean over its networks, divided by its temperature.
        """
        return self.score(images, batch_size).log_odds

    def score(
        self, images: Sequence[Image.Image], batch_size: int = BATCH, alone: bool = False
    ) -> NetworkScores:
        """Return what `Network.score` does: for an ensemble, means over the networks that say it.

        The log odds are divided by the ensemble's temperature.
        """
        found = [one.score(images, batch_size, self.tta, alone) for one in self.networks]
        log_odds = np.mean([one.log_odds for one in found], axis=0) / self.temperature
        verdicts, other = (
            mean_of_known(np.stack(of))
            for of in ([one.verdicts for one in found], [one.other for one in found])
        )
        return NetworkScores(log_odds, verdicts, other)

    def probabilities(self, images: Sequence[Image.Image], batch_size: int = BATCH) -> np.ndarray:
        """Return the calibrated P(pneumonia) of each image, in input order: float64 [N]."""
        return to_probability(self.log_odds(images, batch_size))

    def predict(self, source: Source) -> Prediction:
        """Return the decision on one image: a file's path or bytes, an `Xray` or a PIL image.

        A PIL image has lost what its file says, so that only its pixels and mode are checked.

        Raises:
            XrayError: the file cannot be read.
        """
        return self.predict_all([source])[0]

    def predict_all(
        self, sources: Sequence[Source], refuse: bool = True, alone: bool = False
    ) -> list[Prediction]:
        """Return the decision on each image, in input order, as `predict` does.

        Without `refuse` an image that would be REFUSED gets its probability, and REFER: for
        measurements on images of which a person has said that they are chest X-rays. `alone` is as
        of `Network.score`.
        """
        xrays = [to_xray(source) for source in sources]
        scores = self.score([xray.image for xray in xrays], alone=alone)
        probabilities, others = to_probability(scores.log_odds), to_probability(scores.other)
        return [
            self._decide(xray, *of_image, refuse)
            for xray, *of_image in zip(
                xrays, probabilities.tolist(), others.tolist(), scores.verdicts, strict=True
            )
        ]

    def predict_files(
        self, paths: Sequence[str | Path] | str | Path, refuse: bool = True
    ) -> Iterator[Prediction | XrayError]:
        """Yield the decision on each file, in order, or the error of one that cannot be read."""
        if isinstance(paths, str | Path):
            paths = [paths]
        return self.predict_images(((None, path) for path in paths), refuse)

    def predict_images(
        self, images: Iterable[UndecodedImage], refuse: bool = True
    ) -> Iterator[Prediction | XrayError]:
        """Yield the decision on each image, in order, or the error of one that cannot be read.

        The next images are decoded while the network computes, CHUNK of them at a time.

        Args:
            images: names and undecoded images, as `open_images` yields them.
            refuse: as of `predict_all`.
        """
        if all(one.can_score_alone for one in self.networks):
            from joblib import cpu_count

            # Each core reads and scores images of its own: none waits for another.
            def read_and_score(some: list[UndecodedImage]) -> list[Prediction | XrayError]:
                return self._predict_some(map(try_to_read, some), refuse, alone=True)

            cores = cpu_count()
            found = map_ahead(read_and_score, cut(images, BATCH), cores, cores + 1)
        else:
            found = (self._predict_some(some, refuse) for some in read_in_chunks(images))
        for some in found:
            yield from some

    def _predict_some(
        self, decoded: Iterable[Xray | XrayError], refuse: bool, alone: bool = False
    ) -> list[Prediction | XrayError]:
        decoded = list(decoded)
        readable = [found for found in decoded if isinstance(found, Xray)]
        predictions = iter(self.predict_all(readable, refuse, alone))
        return [next(predictions) if isinstance(found, Xray) else found for found in decoded]

    def _decide(
        self, xray: Xray, probability: float, other: float, verdict: np.ndarray, refuse: bool
    ) -> Prediction:
        """Return the decision; `other` is the P(OTHER) of an image without pneumonia, or NaN."""
        point, caveats = self.operating_point, list(xray.caveats)
        distance = None if np.isnan(verdict[0]) else float(verdict[0])  # None without a gate
        if refusal := find_refusal(verdict[1:]):
            caveats.insert(0, refusal.caveat())
        if any(one.reason in REFUSING for one in caveats):
            if refuse:
                return Prediction(None, None, point.threshold, "REFUSED", tuple(caveats), distance)
        elif distance is not None and distance >= 1:
            caveats.append(Reason.UNLIKE.caveat())
        label = LABELS[int(probability >= point.threshold)]
        if point.low <= probability < point.high:
            caveats.append(Reason.TOO_CLOSE.caveat(low=point.low, high=point.high))
        decision = "REFER" if caveats else label
        abnormal = None if np.isnan(other) else (1 - probability) * other
        if label == LABELS[0] and other >= 0.5:
            caveats.append(Reason.OTHER_ABNORMAL.caveat())
        caveats += self.caveats
        return Prediction(
            label, probability, point.threshold, decision, tuple(caveats), distance, abnormal
        )


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of what is not NaN; NaN where all is."""
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.nansum(values, axis=0) / np.sum(~np.isnan(values), axis=0)


def _pair(models: Sequence[Any], labels: str | Sequence[str], flag: str) -> list[tuple[Any, str]]:
    """Return each model with the name of its class."""
    labels = [labels] if isinstance(labels, str) else list(labels)
    if len(labels) == 1:
        labels *= len(models)
    if len(labels) != len(models):
        raise SettingError(
            f"{flag} has {len(labels)} names for {len(models)} models; give one for all of them, "
            f"or one for each."
        )
    return list(zip(models, labels, strict=True))


def _mean_point(points: Sequence[OperatingPoint | None]) -> OperatingPoint:
    """Return the mean of operating points on the logit scale; a missing one counts as 0.5."""
    known = [one or OperatingPoint(0.5, 0.5, 0.5) for one in points]
    if len(known) == 1:
        return known[0]
    values = zip(*((one.threshold, one.low, one.high) for one in known), strict=True)
    means = (to_probability(np.mean(to_logit(np.array(several)))) for several in values)
    return OperatingPoint(*map(float, means))


def _read_ensemble(folder: Path, name: str) -> dict[str, Any]:
    """Return the contents of `ensemble.json` in `folder`.

    Raises:
        ModelError: a damaged file, or a member that is missing or an ensemble itself.
    """
    file = folder / ENSEMBLE_FILE
    settings = read_json(file, otherwise=None)
    try:
        point, members = OperatingPoint.from_settings(settings), settings["members"]
        sound = 0 <= point.low <= point.threshold <= point.high <= 1
        sound = sound and 0 < float(settings.get("temperature", 1)) < np.inf
        sound = sound and isinstance(members, list) and len(members) > 0
        sound = sound and all(isinstance(member, str) for member in members)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ModelError(
            f"{file} is damaged: it must hold members, threshold, refer_low and refer_high; "
            f"restore it, or give the members as a list."
        )
    for member in members:
        # Checked by its files: a name without a folder would be looked up on the Hub, and an
        # ensemble could be a member of itself.
        if not (folder / member / "config.json").exists():
            raise ModelError(
                f"The member {member} of the ensemble {name} is not a saved model; train it "
                f"again, or give the other members."
            )
        if (folder / member / ENSEMBLE_FILE).exists():
            raise ModelError(
                f"The member {member} of the ensemble {name} is an ensemble itself; "
                f"{ENSEMBLE_FILE} must name single models."
            )
    return settings
