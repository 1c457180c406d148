"""Engine: what the page and the endpoints ask of the model."""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageFilter, ImageStat

from pneumonia_hf.demo.limits import ASSUMED_PREVALENCE, BUSY, Limits
from pneumonia_hf.demo.micro_batch import MicroBatcher
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.files import read_json
from pneumonia_hf.imaging.phantom import simulate
from pneumonia_hf.imaging.read import START, is_image_name, is_image_start, open_xray, to_xray
from pneumonia_hf.imaging.xray import Xray
from pneumonia_hf.inference.attribution import AttributionMap, attribute, methods_for
from pneumonia_hf.inference.network import COMPUTING
from pneumonia_hf.inference.predictor import Prediction, Predictor
from pneumonia_hf.models.model_folder import REPORTS_FILE
from pneumonia_hf.statistics.scored_alike import read_reports

NO_MAP = "none"  # of the attribution methods
NO_FILE = "Upload a chest X-ray first."
MOST_SKIPPED = 1000  # files of zip files, that are named as skipped
CHUNK = 8  # images of a batch that are scored before others have their turn
# The methods of zip files of which Python unzips no more than it is asked for: 830 bytes of bzip2
# took 1.9 GB of memory.
READ_IN_PARTS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
FILLS = ("black", "gray", "blurred")
VERDICTS = {"pass": "passed its tests", "fail": "failed a test"}
NAMES = {"cam": "Class activation map", "occlusion": "Occlusion"}
ATTENTION = {"PNEUMONIA": 0, "REFER": 1, "REFUSED": 2, "": 3, "NORMAL": 4}  # "" is unreadable


@dataclass(frozen=True)
class BatchRow:
    """The result on one file of a batch."""

    file: str
    prediction: Prediction | None  # None: it could not be read
    fault: str  # why, as a sentence
    xray: Xray | None
    source: Path | bytes | None = None  # what was read


@dataclass(frozen=True)
class Batch:
    """The files of a batch."""

    files: tuple[tuple[str, Path | bytes | XrayError], ...]
    skipped: tuple[tuple[str, str], ...]  # of files in zip files that are not scored: name, reason
    budget: Budget


class Stopped(Exception):
    """A map is no longer wanted, before it is complete."""


class Budget:
    """What one request may use: bytes of its zip files together, and time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.unzipped = limits.unzipped_mb * 10**6  # that are left
        self.end = time.monotonic() + limits.seconds

    def spend(self, unzipped: int) -> None:
        """Take bytes off.

        Raises:
            UserError: there are not so many left.
        """
        self.unzipped -= unzipped
        if self.unzipped < 0:
            raise UserError(
                f"The zip files hold more than {self.limits.unzipped_mb} MB; send them in parts."
            )

    def check_time(self) -> None:
        """Raise a UserError if the time is over."""
        if time.monotonic() > self.end:
            raise UserError(
                f"The batch took longer than {self.limits.seconds} s; send fewer images."
            )


class Engine:
    """A predictor with the limits of the app."""

    def __init__(
        self, predictor: Predictor, limits: Limits, prevalence: float = ASSUMED_PREVALENCE
    ) -> None:
        """Take a predictor and find its attribution methods.

        `prevalence` is the share of X-rays with pneumonia that the page assumes; decisions and the
        answers for programs do not depend on it. `default_method` is the best method that passed
        its tests by the reports, None without any; `offered_method` is then the first that did not
        fail, or else the first.
        """
        self.predictor = predictor
        self.limits = limits
        self.prevalence = prevalence
        self.batcher = MicroBatcher(predictor.predict_all)
        self.reports: list[dict[str, Any]] = (
            read_json(predictor.path / REPORTS_FILE, []) if predictor.path else []
        )
        self.scored_alike = read_reports(self.reports)
        self.methods = methods_for(predictor)
        self.verdicts, self.sentences, self.default_method = _choose_method(
            self.reports, self.methods
        )
        sound = [one for one in self.methods if self.verdicts.get(one) != "fail"]
        self.offered_method: str = self.default_method or (sound or self.methods)[0]

    @cached_property
    def simulated_normal(self) -> float:
        """The probability of the simulated patient without an opacity."""
        return self.predict(to_xray(simulate()[0]), refuse=False).probability

    def title_of(self, method: str) -> str:
        """Return a method's name for people."""
        return NAMES.get(method, method)

    def verdict_of(self, method: str) -> str:
        """Return the verdict of a method's tests in words, by the model's reports."""
        return VERDICTS.get(self.verdicts.get(method, ""), "not tested")

    def read(self, path: str | None) -> Xray:
        """Return the X-ray of an upload.

        Raises:
            UserError: there is none; it cannot be read, or is larger than the limits.
        """
        if not path:
            raise UserError(NO_FILE)
        file = Path(path)
        self._check_file(file)
        return self.read_content(file.name, file)

    def read_content(self, name: str, content: Path | bytes) -> Xray:
        """Return the X-ray in a file or in its bytes; XrayErrors are as of `open_xray`."""
        return open_xray(content, name, self.limits.megapixels * 10**6)

    def _check_file(self, file: Path) -> None:
        if not file.is_file():
            raise XrayError("The upload is no longer there; upload the file again.")
        size = file.stat().st_size
        if size > self.limits.upload_mb * 10**6:
            raise XrayError(
                f"{file.name} has {size / 1e6:.0f} MB, more than the {self.limits.upload_mb} MB "
                f"allowed."
            )

    def predict(self, xray: Xray, refuse: bool = True) -> Prediction:
        """Return the decision on an X-ray.

        Without `refuse` the gate only warns: for images with hidden parts, and for a drawing.

        Raises:
            UserError: other requests took too long.
        """
        if refuse:
            return self.batcher.predict(xray, self.limits.seconds)
        self._wait()
        try:
            return self.predictor.predict_all([xray], refuse=False)[0]
        finally:
            COMPUTING.release()

    def attribute(
        self, image: Image.Image, method: str, is_wanted: Callable[[], bool] = lambda: True
    ) -> AttributionMap:
        """Return the attribution map of an image; `is_wanted` is asked before each forward pass.

        Raises:
            Stopped: it is no longer wanted.
            UserError: a method that the model does not support; other requests took too long.
        """

        def check(*_: Any) -> None:
            if not is_wanted():
                raise Stopped

        self._wait()
        with ExitStack() as ending:
            ending.callback(COMPUTING.release)
            for one in self.predictor.networks:
                ending.callback(one.model.register_forward_pre_hook(check).remove)
            return attribute(self.predictor, image, method)

    def _wait(self) -> None:
        if not COMPUTING.acquire(timeout=self.limits.seconds):
            raise UserError(BUSY)

    def score(self, batch: Batch) -> Iterator[list[BatchRow]]:
        """Yield the results on the files of a batch, a few at a time.

        Raises:
            UserError: it takes too long.
        """
        for start in range(0, len(batch.files), CHUNK):
            rows = []
            for name, content in batch.files[start : start + CHUNK]:
                rows.append(self._read_row(name, content))
                batch.budget.check_time()
            yield self._score(rows)

    def open_batch(self, paths: Sequence[str]) -> Batch:
        """Return the images among uploads and in zip files.

        Raises:
            UserError: no image; more than the limits; it takes too long.
        """
        budget, found, skipped = Budget(self.limits), [], []
        too_many = UserError(
            f"The batch has more than {self.limits.batch:,} images; send them in parts."
        )
        if len(paths) > self.limits.batch:  # also of zip files without an image
            raise too_many
        for path in map(Path, paths):
            is_zip = path.suffix.lower() == ".zip"
            for name, content in self._open_zip(path, budget) if is_zip else [(path.name, path)]:
                if isinstance(content, str):
                    if len(skipped) < MOST_SKIPPED:
                        skipped.append((name, content))
                elif len(found) == self.limits.batch:
                    raise too_many
                else:
                    found.append((name, content))
        if not found:
            raise UserError("There is no image; upload X-rays or a zip file of them.")
        return Batch(tuple(found), tuple(skipped), budget)

    def _open_zip(
        self, path: Path, budget: Budget
    ) -> Iterator[tuple[str, bytes | XrayError | str]]:
        """Yield the images in a zip file, and of what is skipped the reason as text.

        They are read in memory, and nothing is unpacked.
        """
        try:
            self._check_file(path)
        except XrayError as error:
            yield path.name, error
            return
        most = self.limits.upload_mb * 10**6
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    budget.check_time()
                    name, base = _name_entry(entry.filename)
                    known = is_image_name(base)
                    if entry.is_dir():
                        continue
                    if "__MACOSX" in entry.filename:
                        yield name, "written by macOS beside the files"
                        continue
                    if known is False:
                        yield name, "its name is not that of an image"
                        continue
                    if entry.compress_type not in READ_IN_PARTS:
                        fault = f"{name} is not read; zip it again with deflate."
                        yield name, XrayError(fault) if known else "zip it again with deflate"
                        continue
                    if known is None:
                        with archive.open(entry) as opened:
                            if not is_image_start(opened.read(START)):
                                yield name, "it does not begin as an image does"
                                continue
                    # Not entry.file_size, which the file itself states.
                    with archive.open(entry) as opened:
                        content = opened.read(min(most, budget.unzipped) + 1)
                    budget.spend(len(content))
                    if len(content) > most:
                        fault = f"{name} has more than the {self.limits.upload_mb} MB allowed."
                        yield name, XrayError(fault)
                    else:
                        yield name, content
        except UserError:
            raise
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
            # RuntimeError: a password; NotImplementedError: an unknown compression.
            yield path.name, XrayError(f"{path.name} is not a zip file that can be read ({error}).")
        except Exception as error:  # zlib, bz2 and lzma raise their own on damaged data
            yield path.name, XrayError(f"{path.name} is damaged ({type(error).__name__}).")

    def _read_row(self, name: str, content: Path | bytes | XrayError) -> BatchRow:
        try:
            if isinstance(content, XrayError):
                raise content
            if isinstance(content, Path):
                return BatchRow(name, None, "", self.read(str(content)), content)
            return BatchRow(name, None, "", self.read_content(name, content), content)
        except UserError as error:
            return BatchRow(name, None, str(error), None)

    def _score(self, rows: list[BatchRow]) -> list[BatchRow]:
        xrays = [row.xray for row in rows if row.xray is not None]
        self._wait()
        try:
            predictions = iter(self.predictor.predict_all(xrays) if xrays else [])
        finally:
            COMPUTING.release()
        return [
            row if row.xray is None else replace(row, prediction=next(predictions)) for row in rows
        ]


def _name_entry(stored: str) -> tuple[str, str]:
    """Return a zip entry's path for people, and its base name.

    The folders tell apart PAT1/IM0001.dcm and PAT2/IM0001.dcm. What leads out of the zip is left
    out: "..", a drive, and "/" at the beginning.
    """
    path = PurePosixPath(stored.replace("\\", "/"))
    kept = [one for one in path.parts if one != ".." and not re.fullmatch("/+|[A-Za-z]:", one)]
    return "/".join(kept) or path.name or "?", path.name


def _choose_method(
    reports: Sequence[dict[str, Any]], supported: Sequence[str]
) -> tuple[dict[str, str], dict[str, str], str | None]:
    """Return the verdict on each tested method, what it was found to hit, and the default method.

    The verdict is fail if any report says so. The default is the best by the first report that has
    one, or else the first that passed; None where none has: a map that failed, or was not tested,
    is shown on request only. Methods of older reports that are no longer offered are left out.
    """
    tested = [one["faithfulness"] for one in reports if one.get("faithfulness")]
    verdicts: dict[str, str] = {}
    sentences: dict[str, str] = {}
    for name, found in ((one["method"], one) for part in tested for one in part["results"]):
        if name not in supported:
            continue
        if verdicts.get(name) != "fail":
            verdicts[name] = found["verdict"]
        said, known = found.get("sentence", ""), sentences.setdefault(name, "")
        if said not in known:  # reports may have the same phantom
            sentences[name] = f"{known} {said}".lstrip()
    passed = [name for name in supported if verdicts.get(name) == "pass"]
    best = [found["best"] for found in tested if found["best"] in passed]
    return verdicts, sentences, (best or passed or [None])[0]


def mask(
    image: Image.Image, border: float, box: Sequence[float] | None, fill: str = FILLS[0]
) -> Image.Image:
    """Return an image whose border and box are hidden.

    Args:
        image: gray.
        border: share of each side that is hidden, 0 to 0.45.
        box: left, top, right and bottom of a part that is hidden, as shares of the sides.
        fill: of FILLS: black, the mean gray, or the image blurred until no detail is left.
    """
    width, height = image.size
    hidden = Image.new("L", image.size, 255 if border else 0)
    if border:
        left, top = round(width * border), round(height * border)
        hidden.paste(0, (left, top, width - left, height - top))
    if box:
        corners = [
            round(share * side) for share, side in zip(box, (width, height) * 2, strict=True)
        ]
        hidden.paste(255, tuple(corners))
    if fill == "black":
        cover = Image.new("L", image.size)
    elif fill == "gray":
        cover = Image.new("L", image.size, round(ImageStat.Stat(image).mean[0]))
    else:
        cover = image.filter(ImageFilter.GaussianBlur(max(image.size) / 16))
    return Image.composite(cover, image, hidden)
