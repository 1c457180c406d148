"""Checks of image quality and of what is left out."""

from __future__ import annotations

import numpy as np

from pneumonia_hf.audit.dataset import Finding, Xrays, count_noun, finding_of_issues, show_examples
from pneumonia_hf.data.issues import ISSUE_KINDS
from pneumonia_hf.imaging import input_checks as gate
from pneumonia_hf.labels import LABELS

WHITE_SHARE = 0.1  # of saturated pixels; real X-rays have up to 0.04
DARK, BRIGHT = 40.0, 220.0  # mean gray levels; real X-rays have 60 to 200
FEW = 0.01  # share of the images up to which oddities of exposure are no matter
UNREADABLE_STOP = 0.05  # share of the files


def check_sizes(xrays: Xrays) -> Finding:
    """Sizes and shapes: images too small or too long to be chest X-rays."""
    width = xrays.images.facts("width").astype(np.float64)
    height = xrays.images.facts("height").astype(np.float64)
    small = np.minimum(width, height) < gate.SMALLEST_SIDE
    long = np.maximum(width, height) > gate.LONGEST_SHAPE * np.minimum(width, height)
    odd = np.flatnonzero(small | long)
    ratio = width / height
    coded, counts = np.unique(
        width.astype(np.uint64) << 32 | height.astype(np.uint64), return_counts=True
    )
    common = {
        f"{one >> 32}x{one & 0xFFFFFFFF}": int(count)
        for one, count in sorted(
            zip(coded.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]
        )[:10]
    }
    if len(coded) == 1:
        text = f"all are {next(iter(common))}"
    else:
        text = (
            f"{len(coded)} sizes, from {int(width.min())}x{int(height.min())} (least sides) to "
            f"{int(width.max())}x{int(height.max())} (greatest), "
            f"width to height {ratio.min():.2f} to {ratio.max():.2f}"
        )
    if len(odd):
        text += f"; {len(odd)} are too small or too long for a chest X-ray"
    return Finding(
        "look" if len(odd) else "fine",
        len(odd),
        f"{text}.",
        *show_examples(xrays, odd, [f"{int(width[row])}x{int(height[row])}" for row in odd]),
        more={
            "sizes": common,
            "aspect_ratio": _quantiles(ratio),
            "files": xrays.files(odd),
        },
    )


def check_modes(xrays: Xrays) -> Finding:
    """How images are stored: kinds of file, bits and colour; coloured ones are no X-rays."""
    coloured = np.flatnonzero(xrays.images.facts("coloured"))
    formats, modes = xrays.images.facts("format"), xrays.images.facts("mode")
    kinds: dict[str, int] = {}
    for name in np.unique(formats):
        for mode, count in zip(*np.unique(modes[formats == name], return_counts=True), strict=True):
            kinds[f"{name.decode()} {mode.decode()}".strip()] = int(count)
    text = ", ".join(f"{count} {name}" for name, count in kinds.items())
    if len(coloured):
        text += f"; {len(coloured)} are coloured"
    return Finding(
        "look" if len(coloured) else "fine",
        len(coloured),
        f"{text}.",
        *show_examples(xrays, coloured),
        more={"kinds": kinds, "files": xrays.files(coloured)},
    )


def check_brightness(xrays: Xrays) -> Finding:
    """Mean gray level: X-rays that are nearly black or nearly white."""
    mean = xrays.images.facts("mean").astype(np.float64)
    odd = np.flatnonzero((mean < DARK) | (mean > BRIGHT))
    of_class = [float(mean[xrays.label == label].mean()) for label in np.unique(xrays.label)]
    low, middle, high = np.percentile(mean, [5, 50, 95]) if len(mean) else (0, 0, 0)
    summary = " and ".join(
        f"{value:.0f} in {LABELS[label]}"
        for value, label in zip(of_class, np.unique(xrays.label), strict=True)
    )
    text = f"mean gray level {middle:.0f} (5% to 95%: {low:.0f} to {high:.0f}); {summary}"
    if len(odd):
        text += f"; {count_noun(odd, 'image')} below {DARK:.0f} or above {BRIGHT:.0f}"
    return Finding(
        "look" if len(odd) > FEW * len(mean) else "fine",
        len(odd),
        f"{text}.",
        *show_examples(xrays, odd, [f"mean {mean[row]:.0f}" for row in odd]),
        more={"mean": _quantiles(mean), "files": xrays.files(odd)},
    )


def check_saturated(xrays: Xrays) -> Finding:
    """Images in which a large share of the pixels is white to the limit."""
    white = xrays.images.facts("white").astype(np.float64)
    odd = np.flatnonzero(white > WHITE_SHARE)
    odd = odd[np.argsort(-white[odd], kind="stable")]
    return Finding(
        "look" if len(odd) > FEW * len(white) else "fine",
        len(odd),
        f"{count_noun(odd, 'image')} with more than {WHITE_SHARE:.0%} white pixels.",
        *show_examples(xrays, odd, [f"{white[row]:.0%} white" for row in odd]),
        more={"white": _quantiles(white), "files": xrays.files(odd)},
    )


def check_blank(xrays: Xrays) -> Finding:
    """Images with nothing in them."""
    std = xrays.images.facts("std")
    blank = np.flatnonzero(std < gate.LEAST_SPREAD)
    return Finding(
        "look" if len(blank) else "fine",
        len(blank),
        f"{count_noun(blank, 'image')}.",
        *show_examples(xrays, blank),
        more={"files": xrays.files(blank)},
    )


def check_unreadable(xrays: Xrays) -> Finding:
    """Files that are taken for X-rays by their name and cannot be read."""
    cases = [one for one in xrays.issues if one.kind == "unreadable"]
    share = len(cases) / max(len(xrays) + len(cases), 1)
    verdict = "stop" if share > UNREADABLE_STOP else "look" if cases else "fine"
    text = f"{count_noun(cases, 'file')} cannot be read" if cases else "every file can be read"
    return finding_of_issues(verdict, cases, f"{text}.")


def check_strays(xrays: Xrays) -> Finding:
    """Files that are left out: no images, or of neither class."""
    kinds = ("not_an_image", "odd_name", "unknown_label", "no_place", "system_file")
    cases = [one for one in xrays.issues if one.kind in kinds]
    counts = {kind: sum(one.kind == kind for one in cases) for kind in kinds}
    summary = "; ".join(f"{n} {ISSUE_KINDS[kind].title}" for kind, n in counts.items() if n)
    matter = any(ISSUE_KINDS[one.kind].strict for one in cases)
    return finding_of_issues(
        "look" if matter else "fine", cases, f"{summary or 'nothing is left out'}.", kinds=counts
    )


def check_metadata(xrays: Xrays) -> Finding:
    """Where metadata.csv and the folder disagree."""
    cases = [one for one in xrays.issues if one.kind.startswith("metadata_")]
    kinds = dict.fromkeys(one.kind for one in cases)
    summary = "; ".join(
        f"{sum(one.kind == kind for one in cases)} files {ISSUE_KINDS[kind].title}"
        for kind in kinds
    )
    return finding_of_issues(
        "look" if cases else "fine",
        cases,
        f"{summary or 'no metadata.csv disagrees with its folder'}.",
    )


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    marks = (0, 5, 25, 50, 75, 95, 100)
    return {
        f"{mark}%": round(float(one), 4)
        for mark, one in zip(marks, np.percentile(values, marks), strict=True)
    }
