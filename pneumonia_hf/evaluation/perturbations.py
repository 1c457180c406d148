"""Changes of an image that leave its diagnosis as it is: frame, markers, look and quality.

A new perturbation is one function and one entry of `PERTURBATIONS`. All work on batches of gray
pixels, float32 [N, 1, H, W] in 0..255, and draw random numbers from the context's generator alone.
The pixels are changed by `imaging.transforms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pneumonia_hf.imaging import transforms
from pneumonia_hf.imaging.transforms import change_gamma, replace_frame


@dataclass(frozen=True)
class Context:
    """What a perturbation may use besides the images."""

    donors: Tensor  # [N, 1, H, W], for each image one of the other class
    generator: torch.Generator  # on the CPU


@dataclass(frozen=True)
class Perturbation:
    """A family of perturbations of growing severity."""

    function: Callable[[Tensor, float, Context], Tensor]
    levels: tuple[float, ...]  # from mild to severe
    unit: str  # what a level means
    trained_by: str | None = None  # the operation of the augmentation that does the like


def stamp_markers(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Print `level` bright letters or words near the border, whatever the class."""

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(pixels), *shape, generator=context.generator) * (high - low) + low

    def choose(count: int) -> Tensor:
        return torch.randint(count, (len(pixels),), generator=context.generator)

    for _ in range(int(level)):
        which = choose(len(transforms.TEXTS))
        centres, near = draw(-0.9, 0.9, 2), draw(0.65, 0.9)
        side, sign = choose(2), choose(2) * 2.0 - 1
        centres[torch.arange(len(pixels)), side] = near * sign
        pixels = transforms.stamp_glyphs(pixels, which, centres, draw(0.06, 0.16), draw(200, 255))
    return pixels


def blur(pixels: Tensor, level: float, _: Context) -> Tensor:
    """Blur with a Gaussian of `level` percent of the side."""
    sigma = level / 100 * pixels.shape[-1]
    return transforms.blur(pixels, sigma, int(3 * sigma))


def rotate(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Rotate by `level` degrees, to a side at random."""
    left = torch.randint(2, (len(pixels),), generator=context.generator).bool()
    return transforms.warp(pixels, transforms.rotation(torch.where(left, -level, level)))


def _alone(function: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    return lambda pixels, level, _: function(pixels, level)


def _with_donors(function: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    return lambda pixels, level, context: function(pixels, context.donors, level)


SHARES = (0.05, 0.1, 0.2)
OF_SIDE = "share of each side"
PERTURBATIONS: dict[str, Perturbation] = {
    # The frame: what is not lung, and differs by class where classes come from different rooms.
    "frame_swap": Perturbation(_with_donors(replace_frame), SHARES, OF_SIDE, "frame"),
    "frame_black": Perturbation(
        lambda pixels, level, _: replace_frame(pixels, 0.0, level), SHARES, OF_SIDE, "frame"
    ),
    "frame_blur": Perturbation(
        lambda pixels, level, _: replace_frame(pixels, transforms.smooth(pixels), level),
        SHARES, OF_SIDE, "frame",
    ),
    "marker_stamp": Perturbation(stamp_markers, (1, 2, 4), "marks", "marker"),
    "marker_remove": Perturbation(
        _alone(transforms.remove_markers), (0.15, 0.3), "outer share searched"
    ),
    # The look: exposure and processing.
    "contrast_match": Perturbation(
        _with_donors(transforms.match_contrast), (0.5, 1.0), "share of the way", "contrast"
    ),
    "histogram_match": Perturbation(
        _with_donors(transforms.match_histogram), (0.5, 1.0), "share of the way", "histogram"
    ),
    "gamma_dark": Perturbation(_alone(change_gamma), (1.4, 2.0), "exponent", "gamma"),
    "gamma_bright": Perturbation(_alone(change_gamma), (0.7, 0.5), "exponent", "gamma"),
    # The quality, in the manner of MedMNIST-C (Di Salvo et al. 2024).
    "jpeg": Perturbation(_alone(transforms.save_as_jpeg), (50, 25, 10), "quality", "jpeg"),
    "noise": Perturbation(
        lambda pixels, level, context: transforms.add_noise(pixels, level, context.generator),
        (6, 12, 24), "gray levels", "noise",
    ),
    "blur": Perturbation(blur, (0.4, 0.8, 1.6), "percent of the side", "blur"),
    "resolution": Perturbation(
        _alone(transforms.lower_resolution), (0.5, 0.33, 0.25), "share of the pixels"
    ),
    "rotation": Perturbation(rotate, (5, 10, 15), "degrees", "rotation"),
    "crop": Perturbation(
        _alone(transforms.crop), (0.95, 0.9, 0.8), "share of each side kept", "crop"
    ),
}  # fmt: skip
# The reverse: the lungs of the other class in an image's own frame. A model that decides by the
# lungs ranks these copies the wrong way round; they are in no summary.
CONTROLS = {
    "centre_swap": Perturbation(
        lambda pixels, level, context: replace_frame(context.donors, pixels, level), (0.2,), OF_SIDE
    )
}
ROBUST = "robust_auroc"
# The copies whose mean AUROC, with that of the plain images, is ROBUST.
COUNTERFACTUALS: tuple[tuple[str, float], ...] = (
    ("frame_swap", 0.1),
    ("frame_swap", 0.2),
    ("marker_stamp", 2),
    ("histogram_match", 1.0),
)


def perturb(
    pixels: np.ndarray, labels: Sequence[int], name: str, level: float, seed: int = 13
) -> np.ndarray:
    """Return perturbed copies of images: uint8 [N, 1, H, W].

    The donor of an image, and all random numbers, follow from `seed`, the perturbation and the
    number of images; each image of a class is a donor about equally often.

    Args:
        pixels: uint8 [N, 1, H, W].
        labels: 0 or 1 of each image; if one is absent, the donors are of the same class.
        name: a key of PERTURBATIONS or CONTROLS.
        level: its severity.
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng([seed, *name.encode()])
    donors = np.empty(len(labels), np.int64)
    for label in (0, 1):
        rows, others = np.flatnonzero(labels == label), np.flatnonzero(labels != label)
        others = others if len(others) else rows
        donors[rows] = generator.permutation(np.resize(others, len(rows)))
    torch_generator = torch.Generator().manual_seed(int(generator.integers(2**62)))
    found = np.empty_like(pixels)
    for start in range(0, len(pixels), 64):
        rows = slice(start, start + 64)
        own, other = (torch.from_numpy(one).float() for one in (pixels[rows], pixels[donors[rows]]))
        changed = (PERTURBATIONS | CONTROLS)[name].function(
            own, level, Context(other, torch_generator)
        )
        found[rows] = changed.round().clamp(0, 255).byte().numpy()
    return found
