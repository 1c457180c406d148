"""EnsemblePredictor: several models that score as one, by the mean of their margins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.files import read_json
from pneumonia_hf.inference.operating_point import OperatingPoint, to_logit, to_probability
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.inference.tta import tta_caveats
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE

if TYPE_CHECKING:
    from PIL import Image

NO_COMMON_THRESHOLD = (
    "No threshold was chosen for these models together: the mean of their own is used."
)
NO_OWN_THRESHOLD = "Some of these models carry no chosen threshold: 0.5 stands in for theirs."


class EnsemblePredictor(Predictor):
    """Models that score as one: the margin of a picture is the mean of its members' margins.

    Members are calibrated each for itself, so that their margins are on one scale; they may be of
    different families and sizes. `model`, `processor` and `pixel_values` are those of the first
    member: what looks inside a model must go through `members`.
    """

    def __init__(
        self,
        members: Sequence[Predictor],
        name: str | None = None,
        path: Path | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Take members that are already loaded.

        Args:
            members: single models; whether test-time augmentation is on is theirs to say.
            name: for people to read; left out, made of the members' names.
            path: the folder that holds `ensemble.json`, if any.
            settings: `threshold`, `refer_low`, `refer_high` and, where the mean margin is to be
                divided by one, `temperature`. Left out, the threshold and its range are the means
                of the members' own, on the logit scale.
        """
        first = members[0]
        name = name or " + ".join(Path(member.name).name for member in members)
        tta = any(member.tta for member in members)
        super().__init__(first.model, first.processor, name, path, tta)
        self._members = tuple(members)
        self.has_threshold = settings is not None
        settings = settings or _mean_settings(members)
        self.temperature = float(settings.get("temperature", 1))
        point = (settings["threshold"], settings["refer_low"], settings["refer_high"])
        self.operating_point = OperatingPoint(*map(float, point))
        self.caveats = ()
        if not self.has_threshold:
            self.caveats += (NO_COMMON_THRESHOLD,)
            if not all(member.has_threshold for member in members):
                self.caveats += (NO_OWN_THRESHOLD,)
        self.caveats += tta_caveats(self.tta, True, bool(settings.get("tta")))

    # The inherited one would make an ensemble of a folder that holds a single model.
    from_pretrained = Predictor.from_pretrained

    @property
    def members(self) -> tuple[Predictor, ...]:
        """The single models, in the order given."""
        return self._members

    def margins(self, images: Sequence[Image.Image], batch_size: int = 32) -> np.ndarray:
        """Return the mean of the members' margins over the temperature, of each image: [N]."""
        margins = [member.margins(images, batch_size) for member in self.members]
        return np.mean(margins, axis=0) / self.temperature


def load_several(
    paths_or_ids: Sequence[str | Path], revision: str | None, device: str | None, tta: bool
) -> EnsemblePredictor:
    """Return the ensemble of some models, each a folder or a Hub id with an optional `@revision`.

    Raises:
        UserError: no model at all, one that cannot be loaded, an ensemble among them, or a
            revision for all of them.
    """
    if not paths_or_ids:
        raise UserError("An ensemble of no models; give one or more.")
    if revision is not None:
        raise UserError("One revision for several models; give each its own, as owner/name@v1.")
    members = [Predictor.from_pretrained(one, None, device, tta) for one in paths_or_ids]
    for one, member in zip(paths_or_ids, members, strict=True):
        if isinstance(member, EnsemblePredictor):
            raise UserError(f"{one} is an ensemble itself; give its members in its place.")
    return EnsemblePredictor(members)


def load_ensemble(folder: Path, name: str, device: str | None, tta: bool) -> EnsemblePredictor:
    """Return the ensemble that the `ensemble.json` in `folder` describes.

    Raises:
        UserError: a damaged file, or a member that is missing, damaged or an ensemble itself.
    """
    file = folder / ENSEMBLE_FILE
    settings = read_json(file, otherwise=None)
    _check_settings(settings, file)
    for member in settings["members"]:
        # By its files and not by its name: a name that is no folder would be sought on the Hub,
        # and an ensemble could be a member of itself.
        if not (folder / member / "config.json").exists():
            raise UserError(
                f"The member {member} of the ensemble {name} is no finished model; train it "
                f"again, or give the others by themselves."
            )
        if (folder / member / ENSEMBLE_FILE).exists():
            raise UserError(
                f"The member {member} of the ensemble {name} is an ensemble itself; "
                f"{ENSEMBLE_FILE} must name single models."
            )
    members = [
        Predictor.from_pretrained(folder / member, None, device, tta)
        for member in settings["members"]
    ]
    return EnsemblePredictor(members, name, folder, settings)


def _check_settings(settings: Any, file: Path) -> None:
    """Raise a UserError unless an ensemble's settings are whole."""
    keys = ("refer_low", "threshold", "refer_high")
    try:
        low, threshold, high = (float(settings[key]) for key in keys)
        sound = 0 <= low <= threshold <= high <= 1
        sound = sound and 0 < float(settings.get("temperature", 1)) < np.inf
        members = settings["members"]
        sound = sound and isinstance(members, list) and len(members) > 0
        sound = sound and all(isinstance(member, str) for member in members)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(
            f"{file} is damaged: it must hold members, threshold, refer_low and refer_high; "
            f"restore it, or give the members one by one."
        )


def _mean_settings(members: Sequence[Predictor]) -> dict[str, float]:
    points = [member.operating_point for member in members]

    def mean(values: list[float]) -> float:
        return float(to_probability(np.mean(to_logit(np.array(values)))))

    return {
        "threshold": mean([point.threshold for point in points]),
        "refer_low": mean([point.low for point in points]),
        "refer_high": mean([point.high for point in points]),
    }
