"""Checks of image quality and of files that are left out."""

from __future__ import annotations

import numpy as np

from pneumonia_hf.audit.dataset import (
    Finding,
    Xrays,
    count_noun,
    finding_of_images,
    finding_of_issues,
)
from pneumonia_hf.data.image_stats import HEADER_DOUBTS
from pneumonia_hf.data.issues import ISSUE_KINDS, NOT_STRICT
from pneumonia_hf.imaging.xray import LEAST_SPREAD, LONGEST_SHAPE, SMALLEST_SIDE
from pneumonia_hf.labels import LABELS
from pneumonia_hf.reasons import Reason

HEADER_WORDS = {  # of DICOM files
    Reason.MODALITY: "say that they are no chest radiographs",
    Reason.VIEW: "say that they are not frontal",
    Reason.BITS: "have values of more bits than stated",
    Reason.WINDOW: "have a window that cannot be applied",
}
WHITE_SHARE = 0.1  # of saturated pixels; real X-rays have up to 0.04
DARK, BRIGHT = 40.0, 220.0  # mean gray levels; real X-rays have 60 to 200
FEW = 0.01  # share of the images up to which an unusual exposure is acceptable
UNREADABLE_FAIL = 0.05  # share of the files


def check_sizes(xrays: Xrays) -> Finding:
    """Sizes and shapes: images too small or too long to be chest X-rays."""
    width = xrays.images.facts("width").astype(np.int64)
    height = xrays.images.facts("height").astype(np.int64)
    small = np.minimum(width, height) < SMALLEST_SIDE
    long = np.maximum(width, height) > LONGEST_SHAPE * np.minimum(width, height)
    odd = np.flatnonzero(small | long)
    ratio = width / height
    sizes, counts = np.unique(np.stack([width, height]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:10]
    common = {f"{sizes[0, at]}x{sizes[1, at]}": int(counts[at]) for at in order}
    if len(counts) == 1:
        text = f"all are {next(iter(common))}"
    else:
        text = (
            f"{len(counts)} sizes, from {width.min()}x{height.min()} (smallest sides) to "
            f"{width.max()}x{height.max()} (largest), "
            f"width to height {ratio.min():.2f} to {ratio.max():.2f}"
        )
    if len(odd):
        text += f"; {len(odd)} are too small or too long for a chest X-ray"
    captions = [f"{width[row]}x{height[row]}" for row in odd]
    more = {"sizes": common, "aspect_ratio": _quantiles(ratio)}
    return finding_of_images(xrays, odd, f"{text}.", captions, **more)


def check_modes(xrays: Xrays) -> Finding:
    """Encodings: formats, bit depths, colour, and DICOM headers that name no frontal X-ray."""
    coloured, doubts = xrays.images.facts("coloured"), xrays.images.facts("doubt")
    formats, modes = xrays.images.facts("format"), xrays.images.facts("mode")
    kinds: dict[str, int] = {}
    for name in np.unique(formats):
        for mode, count in zip(*np.unique(modes[formats == name], return_counts=True), strict=True):
            kinds[f"{name.decode()} {mode.decode()}".strip()] = int(count)
    text = ", ".join(f"{count} {name}" for name, count in kinds.items())
    if coloured.any():
        text += f"; {np.count_nonzero(coloured)} are coloured"
    for doubt in HEADER_DOUBTS:
        if count := np.count_nonzero(doubts == doubt.name.encode()):
            text += f"; {count} {HEADER_WORDS[doubt]}"
    odd = np.flatnonzero((coloured > 0) | (doubts != b""))
    captions = [doubts[row].decode().lower() or "coloured" for row in odd]
    return finding_of_images(xrays, odd, f"{text}.", captions, kinds=kinds)


def check_brightness(xrays: Xrays) -> Finding:
    """Mean gray level: X-rays that are nearly black or nearly white."""
    mean = xrays.images.facts("mean").astype(np.float64)
    odd = np.flatnonzero((mean < DARK) | (mean > BRIGHT))
    low, middle, high = np.percentile(mean, [5, 50, 95]) if len(mean) else (0, 0, 0)
    by_class = " and ".join(
        f"{mean[xrays.label == label].mean():.0f} in {LABELS[label]}"
        for label in np.unique(xrays.label)
    )
    text = f"mean gray level {middle:.0f} (5% to 95%: {low:.0f} to {high:.0f}); {by_class}"
    if len(odd):
        text += f"; {count_noun(odd, 'image')} below {DARK:.0f} or above {BRIGHT:.0f}"
    captions = [f"mean {mean[row]:.0f}" for row in odd]
    few = FEW * len(mean)
    return finding_of_images(xrays, odd, f"{text}.", captions, few, mean=_quantiles(mean))


def check_saturated(xrays: Xrays) -> Finding:
    """Saturation: images with a large share of white pixels."""
    white = xrays.images.facts("white").astype(np.float64)
    odd = np.flatnonzero(white > WHITE_SHARE)
    odd = odd[np.argsort(-white[odd], kind="stable")]
    text = f"{count_noun(odd, 'image')} with more than {WHITE_SHARE:.0%} white pixels."
    captions = [f"{white[row]:.0%} white" for row in odd]
    few = FEW * len(white)
    return finding_of_images(xrays, odd, text, captions, few, white=_quantiles(white))


def check_blank(xrays: Xrays) -> Finding:
    """Blank images."""
    blank = np.flatnonzero(xrays.images.facts("std") < LEAST_SPREAD)
    return finding_of_images(xrays, blank, f"{count_noun(blank, 'image')}.")


def check_unreadable(xrays: Xrays) -> Finding:
    """Files with an image suffix that cannot be read."""
    cases = [one for one in xrays.issues if one.kind == "unreadable"]
    share = len(cases) / max(len(xrays) + len(cases), 1)
    verdict = "fail" if share > UNREADABLE_FAIL else "warn" if cases else "pass"
    text = f"{count_noun(cases, 'file')} cannot be read" if cases else "every file can be read"
    return finding_of_issues(verdict, cases, f"{text}.")


def check_strays(xrays: Xrays) -> Finding:
    """Files that are left out: masks, not images, or of neither class."""
    kinds = ("mask", "not_an_image", "odd_name", "unknown_label", "no_place", "system_file")
    cases = [one for one in xrays.issues if one.kind in kinds]
    counts = {kind: sum(one.kind == kind for one in cases) for kind in kinds}
    text = "; ".join(f"{n} {ISSUE_KINDS[kind]}" for kind, n in counts.items() if n)
    verdict = "warn" if {one.kind for one in cases} - NOT_STRICT else "pass"
    return finding_of_issues(verdict, cases, f"{text or 'no file is left out'}.", kinds=counts)


def check_metadata(xrays: Xrays) -> Finding:
    """Disagreements of metadata.csv and its folder."""
    cases = [one for one in xrays.issues if one.kind.startswith("metadata_")]
    text = "; ".join(
        f"{sum(one.kind == kind for one in cases)} files {ISSUE_KINDS[kind]}"
        for kind in dict.fromkeys(one.kind for one in cases)
    )
    text = f"{text or 'no metadata.csv disagrees with its folder'}."
    return finding_of_issues("warn" if cases else "pass", cases, text)


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    marks = (0, 5, 25, 50, 75, 95, 100)
    quantiles = np.percentile(values, marks)
    return {f"{mark}%": round(float(one), 4) for mark, one in zip(marks, quantiles, strict=True)}
