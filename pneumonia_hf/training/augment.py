"""Augmentation in training, on a batch of tensors, on any device.

A new operation is one function, one entry of `MOVES` or `CHANGES`, and one field of
`AugmentConfig`. kornia does the work where it is fast. Each operation processes only the images
that are drawn for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pneumonia_hf.evaluation.perturbations import (
    TEXTS,
    draw_glyphs,
    remove_markers,
    smooth,
    soft_window,
    stamp_glyphs,
)
from pneumonia_hf.training.recipe import AugmentConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def augment(pixels: Tensor, config: AugmentConfig) -> Tensor:
    """Return `pixels` with small random changes that do not change the diagnosis.

    Rotation, zoom and translation (the patient's position), histogram, brightness, contrast and
    gamma (exposure), blur and noise (the detector), CLAHE and JPEG (later processing), and erasing
    of a rectangle (markers, tubes). Mirroring is off by default: the heart lies on one side.

    Args:
        pixels: gray images of 0..255, [N, 1, H, W], uint8 or float.
        config: the strength of each operation.

    Returns:
        float32 [N, 1, H, W] in 0..255. Random numbers come from torch's default generators of
        the CPU and (noise only) of the pixels' device, which the Trainer seeds and saves in its
        checkpoints. An operation of strength 0 draws none.
    """
    return _apply(pixels, config.strengths())


def _apply(pixels: Tensor, strengths: dict[str, float], always: bool = False) -> Tensor:
    """Apply the operations of these strengths, each to its share of the images or `always`."""
    if not strengths:
        return pixels.float()
    pixels = pixels.float() / 255  # a copy, which is changed in place
    moves = {name: strengths[name] for name in MOVES if name in strengths}
    if moves:
        rows = _draw_rows(pixels, 1 if always else MOVED_SHARE)
        pixels = _replace(pixels, rows, lambda drawn: _warp(drawn, moves))
    for name, change in CHANGES.items():
        if name in strengths:
            rows = _draw_rows(pixels, 1 if always else change.share)
            pixels = _replace(pixels, rows, change.function, strengths[name])
    return pixels.mul_(255)


# Drawn on the CPU, where the number of rows is known without waiting for a GPU.
def _draw_rows(pixels: Tensor, share: float) -> Tensor:
    """Return the indices of the images that are drawn, each with a probability of `share`."""
    return (torch.rand(len(pixels)) < share).nonzero().flatten()


def _replace(pixels: Tensor, rows: Tensor, function: Callable, *arguments: float) -> Tensor:
    """Apply `function` to the images in `rows` and write the results into `pixels`."""
    if len(rows) == 0:
        return pixels
    if len(rows) == len(pixels):
        return function(pixels, *arguments).clamp_(0, 1)
    rows = _send(rows, pixels)
    changed = function(pixels.index_select(0, rows), *arguments)
    return pixels.index_copy_(0, rows, changed.clamp_(0, 1))


def _draw(pixels: Tensor, low: float, high: float) -> Tensor:
    """Return a number in `low`..`high` for each image: [N], on the CPU."""
    return torch.empty(len(pixels)).uniform_(low, high)


def _draw_for(pixels: Tensor, low: float, high: float) -> Tensor:
    """Return a number in `low`..`high` for each image: [N, 1, 1, 1], on its device."""
    return _send(_draw(pixels, low, high), pixels)[:, None, None, None]


def _send(numbers: Tensor, pixels: Tensor) -> Tensor:
    """Return `numbers` on the device of `pixels`."""
    # Only CUDA has copied `numbers` when the call returns; elsewhere they could change before.
    return numbers.to(pixels.device, non_blocking=pixels.is_cuda)


def _identity(pixels: Tensor) -> Tensor:
    """Return an identity matrix for each image: [N, 3, 3]."""
    return torch.eye(3).repeat(len(pixels), 1, 1)


def rotate(pixels: Tensor, strength: float) -> Tensor:
    """Return rotations about the centre by up to 7 degrees either way: [N, 3, 3]."""
    height, width = pixels.shape[-2:]
    limit = math.radians(7 * strength)
    angle = _draw(pixels, -limit, limit)
    turn = _identity(pixels)
    turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
    # Both axes run from -1 to 1, whatever the aspect ratio: pixels are not square in them.
    turn[:, 0, 1] = -angle.sin() * height / width
    turn[:, 1, 0] = angle.sin() * width / height
    return turn


def zoom(pixels: Tensor, strength: float) -> Tensor:
    """Return magnifications by a factor of 0.9 to 1.1: [N, 3, 3]."""
    width = min(0.1 * strength, 0.5)
    scale = _identity(pixels)
    scale[:, 0, 0] = scale[:, 1, 1] = 1 / _draw(pixels, 1 - width, 1 + width)
    return scale


def translate(pixels: Tensor, strength: float) -> Tensor:
    """Return translations by up to 5% of the width and of the height: [N, 3, 3]."""
    limit = 2 * min(0.05 * strength, 0.5)
    shift = _identity(pixels)
    shift[:, 0, 2] = _draw(pixels, -limit, limit)
    shift[:, 1, 2] = _draw(pixels, -limit, limit)
    return shift


def crop(pixels: Tensor, strength: float) -> Tensor:
    """Return enlargements of windows of 60% to 100% of each side, stretched by up to 15%."""
    window = torch.empty(len(pixels), 1).uniform_(1 / (1 + 0.67 * strength), 1)
    stretch = torch.empty(len(pixels), 1).uniform_(-0.075 * strength, 0.075 * strength)
    sides = (window * torch.cat([stretch, -stretch], 1).exp()).clamp(0.2, 1.1)
    scale = _identity(pixels)
    scale[:, 0, 0], scale[:, 1, 1] = sides.T
    # The window lies anywhere within the image.
    scale[:, :2, 2] = torch.empty(len(pixels), 2).uniform_(-1, 1) * (1 - sides).clamp_min(0)
    return scale


def _warp(pixels: Tensor, moves: dict[str, float]) -> Tensor:
    """Apply all moves in one bilinear interpolation; black outside the image."""
    matrices = [MOVES[name](pixels, strength) for name, strength in moves.items()]
    matrix = reduce(torch.matmul, matrices)[:, None, :2]  # [N, 1, 2, 3]
    # The centres of pixels, as for align_corners=False. affine_grid takes three times as long.
    y, x = ((torch.arange(0.5, side) * 2 / side - 1)[:, None] for side in pixels.shape[-2:])
    along = x * matrix[..., 0]  # [N, W, 2]
    down = y * matrix[..., 1] + matrix[..., 2]  # [N, H, 2]
    grid = _send(along, pixels)[:, None] + _send(down, pixels)[:, :, None]  # [N, H, W, 2]
    return functional.grid_sample(pixels, grid, align_corners=False)


def mirror(pixels: Tensor, strength: float) -> Tensor:
    """Mirror images left to right, with a probability of `strength`."""
    return torch.where(_draw_for(pixels, 0, 1) < strength, pixels.flip(-1), pixels)


def change_brightness(pixels: Tensor, strength: float) -> Tensor:
    """Add -0.15 to 0.15."""
    limit = min(0.15 * strength, 0.5)
    return pixels.add_(_draw_for(pixels, -limit, limit))


def change_contrast(pixels: Tensor, strength: float) -> Tensor:
    """Scale the differences from the image's mean by a factor of 0.75 to 1.25."""
    # Not the values themselves, as kornia's RandomContrast does: a factor of 1.25 would make
    # consolidation, heart and bone equally white.
    width = min(0.25 * strength, 0.75)
    factor = _draw_for(pixels, 1 - width, 1 + width)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return pixels.mul_(factor).add_(mean * (1 - factor))


def change_gamma(pixels: Tensor, strength: float) -> Tensor:
    """Raise the gray levels to a power of 0.65 to 1.35."""
    # Not kornia's adjust_gamma: it makes a GPU wait for a number from the CPU.
    width = min(0.35 * strength, 0.75)
    return pixels.pow_(_draw_for(pixels, 1 - width, 1 + width))


def borrow_histogram(pixels: Tensor, strength: float) -> Tensor:
    """Move the gray levels up to all the way to those of another image, in the same order.

    The others are those of the batch, whatever their class and site.
    """
    levels = (pixels.flatten(1) * 255).round().clamp(0, 255).long()
    counts = torch.zeros(len(pixels), 256, device=pixels.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=counts.dtype))
    shares = counts.cumsum(1) / levels.shape[1]  # of pixels at or below each level
    donors = shares.roll(1, dims=0)  # the batch's order is random
    middle = shares - counts / levels.shape[1] / 2  # half of the pixels of a level are below it
    table = torch.searchsorted(donors, middle.contiguous()).clamp_max(255) / 255
    matched = table.gather(1, levels).view_as(pixels)
    return torch.lerp(pixels, matched, _draw_for(pixels, 0, min(strength, 1)))


def blur(pixels: Tensor, strength: float) -> Tensor:
    """Blur with a Gaussian of 0.1 to 1.6 pixels."""
    from kornia.filters import gaussian_blur2d

    widest = 0.1 + 1.5 * strength
    sigma = _draw(pixels, 0.1, widest)  # on the CPU, where gaussian_blur2d reads the numbers
    # The kernel covers three standard deviations of the widest: one of 5 x 5 would reduce 1.6
    # pixels to 1.2. It is not wider than the image, whose border is mirrored.
    reach = min(math.ceil(3 * widest), min(pixels.shape[-2:]) - 1)
    return gaussian_blur2d(pixels, (2 * reach + 1,) * 2, torch.stack([sigma, sigma], 1))


def add_noise(pixels: Tensor, strength: float) -> Tensor:
    """Add Gaussian noise with a standard deviation of 0.03."""
    return pixels.add_(torch.randn_like(pixels), alpha=0.03 * strength)


def equalise(pixels: Tensor, strength: float) -> Tensor:
    """Equalise local histograms (CLAHE), with a clip limit of 1 to 3."""
    from kornia.augmentation import RandomClahe

    grid = tuple(max(1, min(8, side // 16)) for side in pixels.shape[-2:])
    return RandomClahe((1.0, 1 + 2 * strength), grid, p=1)(pixels)


# The luminance table of the JPEG standard (ITU-T T.81, table K.1), used as it is at quality 50.
JPEG_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


def compress(pixels: Tensor, strength: float) -> Tensor:
    """Quantise as a JPEG of quality 90 to 30.

    kornia's codec works on colour and rounds differentiably: it takes ten times as long.
    """
    n, _, height, width = pixels.shape
    quality = 100 - _draw(pixels, 10 * strength, 70 * strength).clamp(0, 95)
    # libjpeg's scale of the table.
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None]
    table = (torch.tensor(JPEG_TABLE) * scale + 0.5).floor().clamp(1, 255)[:, None, None]
    frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)
    cosines = torch.cos((2 * place + 1) * frequency * (math.pi / 16)) / 2
    cosines[0] /= math.sqrt(2)  # orthonormal
    table, cosines = _send(table, pixels), _send(cosines, pixels)

    padded = functional.pad(pixels * 255 - 128, (0, -width % 8, 0, -height % 8), mode="replicate")
    rows, columns = padded.shape[-2] // 8, padded.shape[-1] // 8
    blocks = padded.view(n, rows, 8, columns, 8).transpose(2, 3)
    blocks = cosines.T @ ((cosines @ blocks @ cosines.T / table).round() * table) @ cosines
    whole = blocks.transpose(2, 3).reshape(n, 1, rows * 8, columns * 8)
    return (whole[..., :height, :width] + 128) / 255


def hide_frame(pixels: Tensor, strength: float) -> Tensor:
    """Replace up to 30% of each side, with a soft edge, by what says nothing about the class.

    That is the frame of another image of the batch (half of the time), black, a smooth random
    field, or the image's own frame without any detail. Of half of the images, all sides lose the
    same share: four independent shares are seldom all large.
    """
    limit = min(0.3 * strength, 0.45)
    margins = torch.empty(len(pixels), 4).uniform_(0, limit)
    equal = torch.rand(len(pixels), 1) < 0.5
    margins = torch.where(equal, margins[:, :1], margins)
    kind = torch.randint(-2, 4, (len(pixels),)).clamp_min(0)  # 0 in half of the images
    donors = pixels[_send(torch.randperm(len(pixels)), pixels)]
    cells = int(torch.randint(3, 25, ()))
    field = _send(torch.rand(len(pixels), 1, cells, cells), pixels)
    field = functional.interpolate(field, pixels.shape[-2:], mode="bilinear", align_corners=False)
    outside = _send((kind == 0).float(), pixels)[:, None, None, None] * donors
    for number, other in ((2, field), (3, smooth(pixels))):
        outside += _send((kind == number).float(), pixels)[:, None, None, None] * other
    window = soft_window(*pixels.shape[-2:], _send(margins, pixels))
    return torch.lerp(outside, pixels, window)


def print_markers(pixels: Tensor, strength: float) -> Tensor:
    """Print one or two letters, words or blocks of any size anywhere; of some, remove old ones.

    At a strength of 1 a mark is 3% to 20% of the width.
    """
    rows = _draw_rows(pixels, 0.2)
    pixels = _replace(pixels, rows, lambda drawn: remove_markers(drawn * 255, 0.3) / 255)
    for share in (1, 0.5):
        rows = _draw_rows(pixels, share)
        pixels = _replace(pixels, rows, _print_marker, strength)
    return pixels


def _print_marker(pixels: Tensor, strength: float) -> Tensor:
    glyphs = draw_glyphs()[torch.randint(len(TEXTS), (len(pixels),))]
    places = torch.empty(len(pixels), 2).uniform_(-0.95, 0.95)
    sizes, grays = _draw(pixels, 0.03, min(0.2 * strength, 0.5)), _draw(pixels, 0.5, 1)
    return stamp_glyphs(pixels, *(_send(one, pixels) for one in (glyphs, places, sizes, grays)))


def erase(pixels: Tensor, strength: float) -> Tensor:
    """Set a rectangle of 2% to 8% of the image to black."""
    from kornia.augmentation import RandomErasing

    return RandomErasing(scale=(0.02, min(0.02 + 0.06 * strength, 0.3)), p=1.0)(pixels)


@dataclass(frozen=True)
class Change:
    """An operation, and the share of the images that it is applied to."""

    function: Callable[[Tensor, float], Tensor]
    share: float


MOVED_SHARE = 0.9  # the network also sees images that no interpolation has blurred
# Translation comes last, so that the zoom does not scale it.
MOVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rotation": rotate,
    "zoom": zoom,
    "crop": crop,
    "translation": translate,
}
# In the order of the causes: exposure, detector, software, storage.
CHANGES: dict[str, Change] = {
    "flip": Change(mirror, 0.5),
    "histogram": Change(borrow_histogram, 0.4),
    "brightness": Change(change_brightness, 0.5),
    "contrast": Change(change_contrast, 0.5),
    "gamma": Change(change_gamma, 0.5),
    "blur": Change(blur, 0.2),
    "noise": Change(add_noise, 0.2),
    "frame": Change(hide_frame, 0.7),
    "marker": Change(print_markers, 0.5),
    "clahe": Change(equalise, 0.1),
    "jpeg": Change(compress, 0.1),
    "erasing": Change(erase, 0.2),
}
AUGMENTATIONS = MOVES | CHANGES


def draw_preview(pixels: Tensor, config: AugmentConfig, columns: int = 6, seed: int = 13) -> Figure:
    """Return a figure of what `config` does: one row for each operation, then all together.

    A single operation is applied in every column; all together are applied as in training.
    The first column is the unchanged image.

    Args:
        pixels: gray images of 0..255, [N, 1, H, W], used in turn.
        config: the strength of each operation; those of strength 0 get no row.
        columns: images in a row, the unchanged one included.
        seed: of each row, which does not depend on the other rows.
    """
    from matplotlib.figure import Figure

    strengths = config.strengths()
    rows = {f"{name}\n{strength:g}": {name: strength} for name, strength in strengths.items()}
    rows["all, as\nin training"] = strengths
    figure = Figure(figsize=(1.5 * columns + 0.4, 1.5 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, (title, changes) in enumerate(rows.items()):
        image = pixels[row % len(pixels)].cpu()  # [1, H, W]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            copies = image.repeat(columns - 1, 1, 1, 1)
            # The others are donors of frames and histograms.
            batch = torch.cat([copies, pixels.cpu()])
            changed = _apply(batch, changes, always=changes is not strengths)[: columns - 1]
        for axes, one in zip(grid[row], [image, *changed], strict=True):
            axes.imshow(one[0].numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        grid[row, 0].set_ylabel(title)
    grid[0, 0].set_title("unchanged")
    if off := [name for name in AUGMENTATIONS if name not in strengths]:
        figure.supxlabel(f"off: {', '.join(off)}")
    return figure
