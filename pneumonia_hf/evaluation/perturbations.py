"""Changes of an image that leave its diagnosis as it is: frame, markers, look and quality.

A new perturbation is one function and one entry of `PERTURBATIONS`. All work on batches of gray
pixels, float32 [N, 1, H, W] in 0..255, and draw random numbers from the context's generator alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

SOFT_EDGE = 0.04  # width of the transition at a frame, as a share of the side
# Side letters, views and labels as they are printed or exposed on films; and plain blocks.
TEXTS = ("R", "L", "R", "L", "AP", "PA", "PORTABLE", "ERECT", "SUPINE", "12:45", "kV 70", "#", "■")
GLYPH_SIDE = 48  # pixels of a drawn text


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


def soft_window(height: int, width: int, margins: Tensor) -> Tensor:
    """Return 1 within a window and 0 outside of it, with a soft edge: [N, 1, H, W].

    `margins` are the shares of height and width outside of the window: [N, 4], for top, bottom,
    left and right. A margin of 0 has no edge.
    """
    sides = []
    for length, (near, far) in ((height, (0, 1)), (width, (2, 3))):
        place = (torch.arange(length, device=margins.device) + 0.5) / length
        first, last = margins[:, near, None], margins[:, far, None]
        inside = ((place - first) / SOFT_EDGE + 0.5).clamp(0, 1).where(first > 0, 1)
        inside = inside * ((1 - place - last) / SOFT_EDGE + 0.5).clamp(0, 1).where(last > 0, 1)
        sides.append(inside)
    return sides[0][:, None, :, None] * sides[1][:, None, None, :]


def replace_frame(pixels: Tensor, share: float, others: Tensor | float) -> Tensor:
    """Replace the outer `share` of each side by that of `others`."""
    margins = pixels.new_full((len(pixels), 4), share)
    window = soft_window(*pixels.shape[-2:], margins)
    return pixels * window + others * (1 - window)


def swap_frame(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Replace the frame by that of an image of the other class."""
    return replace_frame(pixels, level, context.donors)


def swap_centre(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Keep the frame, and replace all within it by an image of the other class."""
    return replace_frame(context.donors, level, pixels)


def blacken_frame(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Make the frame black."""
    return replace_frame(pixels, level, 0.0)


def blur_frame(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Blur the frame until no text or edge is left."""
    return replace_frame(pixels, level, smooth(pixels))


def smooth(pixels: Tensor, cells: int = 8) -> Tensor:
    """Return the means of `cells` x `cells` parts of each image, interpolated to its size."""
    means = functional.adaptive_avg_pool2d(pixels, cells)
    return functional.interpolate(means, pixels.shape[-2:], mode="bilinear", align_corners=False)


@lru_cache(maxsize=1)
def draw_glyphs() -> Tensor:
    """Return the drawn TEXTS, each filling the width of its square: [G, 1, SIDE, SIDE], 0..1."""
    drawn = []
    for text in TEXTS:
        image = Image.new("L", (GLYPH_SIDE, GLYPH_SIDE))
        draw = ImageDraw.Draw(image)
        if text == "■":
            draw.rectangle((4, 12, GLYPH_SIDE - 5, GLYPH_SIDE - 13), fill=255)
        else:
            size = next(
                size
                for size in range(GLYPH_SIDE, 4, -1)
                if draw.textlength(text, ImageFont.load_default(size)) <= GLYPH_SIDE - 4
            )
            middle = GLYPH_SIDE / 2
            draw.text((middle, middle), text, 255, ImageFont.load_default(size), anchor="mm")
        drawn.append(np.asarray(image, np.float32) / 255)
    return torch.from_numpy(np.stack(drawn))[:, None]


def stamp_glyphs(
    pixels: Tensor, glyphs: Tensor, centres: Tensor, sizes: Tensor, grays: Tensor
) -> Tensor:
    """Print one glyph on each image.

    Args:
        pixels: [N, 1, H, W].
        glyphs: of `draw_glyphs`, one for each image: [N, 1, SIDE, SIDE].
        centres: x and y in -1..1: [N, 2].
        sizes: width of the text as a share of the image's width; negative: mirrored: [N].
        grays: gray level of the text in 0..255: [N].
    """
    height, width = pixels.shape[-2:]
    y, x = (
        (torch.arange(0.5, side, device=pixels.device) * 2 / side - 1) for side in (height, width)
    )
    # The coordinates within the glyph: pixels outside of -1..1 are not printed on.
    across = (x - centres[:, :1]) / sizes[:, None]
    down = (y - centres[:, 1:]) / sizes[:, None].abs() * (height / width)
    grid = torch.stack(
        [across[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], dim=-1
    )
    ink = functional.grid_sample(glyphs, grid, align_corners=False)
    return pixels + ink * (grays[:, None, None, None] - pixels)


def stamp_markers(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Print `level` bright letters or words near the border, whatever the class."""

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(pixels), *shape, generator=context.generator) * (high - low) + low

    for _ in range(int(level)):
        which = torch.randint(len(TEXTS), (len(pixels),), generator=context.generator)
        centres, near = draw(-0.9, 0.9, 2), draw(0.65, 0.9)
        side = torch.randint(2, (len(pixels),), generator=context.generator)
        sign = torch.randint(2, (len(pixels),), generator=context.generator) * 2.0 - 1
        centres[torch.arange(len(pixels)), side] = near * sign
        drawn = (centres, draw(0.06, 0.16), draw(200, 255))
        pixels = stamp_glyphs(
            pixels, *(one.to(pixels.device) for one in (draw_glyphs()[which], *drawn))
        )
    return pixels


def remove_markers(pixels: Tensor, level: float, context: Context | None = None) -> Tensor:
    """Remove bright marks that are smaller than a tenth of the side, in the outer `level`.

    What a grayscale opening lowers by more than 80 gray levels is a small bright mark (ribs stay
    below that), and takes the value of the opening.
    """
    # At half the resolution, an eighth of the work; maxima, so that no edge looks like a mark.
    small = functional.max_pool2d(pixels, 2, ceil_mode=True)
    side = max(3, small.shape[-1] // 10 | 1)
    opened = _dilate(-_dilate(-small, side), side)
    opened = opened.repeat_interleave(2, -1).repeat_interleave(2, -2)
    opened = opened[..., : pixels.shape[-2], : pixels.shape[-1]]
    marks = _dilate((pixels - opened > 80).float(), 5)
    marks = marks * (1 - soft_window(*pixels.shape[-2:], pixels.new_full((len(pixels), 4), level)))
    return pixels + marks * (torch.minimum(opened, pixels) - pixels)


def _dilate(pixels: Tensor, side: int) -> Tensor:
    """Return the maximum over squares of `side` pixels, an odd number."""
    row = functional.max_pool2d(pixels, (1, side), 1, (0, side // 2))
    return functional.max_pool2d(row, (side, 1), 1, (side // 2, 0))


def match_contrast(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Move mean and standard deviation to those of an image of the other class."""
    mean, deviation = (_statistic(pixels, one) for one in (torch.mean, torch.std))
    wanted_mean, wanted = (_statistic(context.donors, one) for one in (torch.mean, torch.std))
    matched = (pixels - mean) / deviation.clamp_min(1) * wanted + wanted_mean
    return torch.lerp(pixels, matched, level)


def _statistic(pixels: Tensor, function: Callable) -> Tensor:
    return function(pixels, dim=(1, 2, 3), keepdim=True)


def match_histogram(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Move the histogram to that of an image of the other class."""
    ranks = pixels.flatten(1).argsort(dim=1)
    matched = torch.empty_like(pixels).flatten(1)
    matched.scatter_(1, ranks, context.donors.flatten(1).sort(dim=1).values)
    return torch.lerp(pixels, matched.view_as(pixels), level)


def change_gamma(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Raise the gray levels to the power of `level`."""
    return (pixels / 255).clamp_min(0) ** level * 255


def compress(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Save as a JPEG of quality `level`, and read it again."""
    found = []
    for one in pixels.round().clamp(0, 255).byte().cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(one[0]).save(file, "jpeg", quality=int(level))
        found.append(np.asarray(Image.open(file), np.float32)[None])
    return torch.from_numpy(np.stack(found)).to(pixels.device)


def add_noise(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Add Gaussian noise with a standard deviation of `level` gray levels."""
    noise = torch.randn(pixels.shape, generator=context.generator)
    return pixels + noise.to(pixels.device) * level


def blur(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Blur with a Gaussian of `level` percent of the side."""
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma = level / 100 * pixels.shape[-1]
    reach = min(max(1, int(3 * sigma)), min(pixels.shape[-2:]) - 1)
    # One axis after the other: torchvision would convolve with the whole square.
    across = gaussian_blur(pixels, [2 * reach + 1, 1], [sigma, sigma])
    return gaussian_blur(across, [1, 2 * reach + 1], [sigma, sigma])


def lower_resolution(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Reduce to the share `level` of the pixels of each side, and enlarge again."""
    size = [max(8, round(side * level)) for side in pixels.shape[-2:]]
    small = functional.interpolate(pixels, size, mode="area")
    return functional.interpolate(small, pixels.shape[-2:], mode="bilinear", align_corners=False)


def rotate(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Rotate by `level` degrees, to a side at random."""
    from torchvision.transforms.v2.functional import InterpolationMode, rotate

    left = torch.randint(2, (len(pixels),), generator=context.generator).bool().to(pixels.device)
    both = (rotate(pixels, sign * level, InterpolationMode.BILINEAR) for sign in (1, -1))
    return torch.where(left[:, None, None, None], *both)


def crop(pixels: Tensor, level: float, context: Context) -> Tensor:
    """Keep the central share `level` of each side, enlarged to the whole."""
    height, width = (round(side * level) for side in pixels.shape[-2:])
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    inner = pixels[..., top : top + height, left : left + width]
    return functional.interpolate(inner, pixels.shape[-2:], mode="bilinear", align_corners=False)


SHARES = (0.05, 0.1, 0.2)
OF_SIDE = "share of each side"
PERTURBATIONS: dict[str, Perturbation] = {
    # The frame: what is not lung, and differs by class where classes come from different rooms.
    "frame_swap": Perturbation(swap_frame, SHARES, OF_SIDE, "frame"),
    "frame_black": Perturbation(blacken_frame, SHARES, OF_SIDE, "frame"),
    "frame_blur": Perturbation(blur_frame, SHARES, OF_SIDE, "frame"),
    "marker_stamp": Perturbation(stamp_markers, (1, 2, 4), "marks", "marker"),
    "marker_remove": Perturbation(remove_markers, (0.15, 0.3), "outer share searched"),
    # The look: exposure and processing.
    "contrast_match": Perturbation(match_contrast, (0.5, 1.0), "share of the way", "contrast"),
    "histogram_match": Perturbation(match_histogram, (0.5, 1.0), "share of the way", "histogram"),
    "gamma_dark": Perturbation(change_gamma, (1.4, 2.0), "exponent", "gamma"),
    "gamma_bright": Perturbation(change_gamma, (0.7, 0.5), "exponent", "gamma"),
    # The quality, in the manner of MedMNIST-C (Di Salvo et al. 2024).
    "jpeg": Perturbation(compress, (50, 25, 10), "quality", "jpeg"),
    "noise": Perturbation(add_noise, (6, 12, 24), "gray levels", "noise"),
    "blur": Perturbation(blur, (0.4, 0.8, 1.6), "percent of the side", "blur"),
    "resolution": Perturbation(lower_resolution, (0.5, 0.33, 0.25), "share of the pixels"),
    "rotation": Perturbation(rotate, (5, 10, 15), "degrees", "rotation"),
    "crop": Perturbation(crop, (0.95, 0.9, 0.8), "share of each side kept", "crop"),
}
# The reverse: the lungs of the other class in an image's own frame. A model that decides by the
# lungs ranks these copies the wrong way round; they are in no summary.
CONTROLS = {"centre_swap": Perturbation(swap_centre, (0.2,), OF_SIDE)}
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
