"""Augmentation in training, on a batch of tensors, on any device.

A new operation is one function, one entry of `MOVES` or `CHANGES`, and one field of
`AugmentConfig`. The functions draw strengths for `imaging.transforms`, and each operation
processes only the images that are drawn for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pneumonia_hf.imaging import transforms
from pneumonia_hf.training.recipe import AugmentConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def augment(pixels: Tensor, config: AugmentConfig) -> Tensor:
    """Return `pixels` with small random changes that do not change the diagnosis.

    Random numbers come from torch's default generators of the CPU and (noise only) of the pixels'
    device, which the Trainer seeds and saves in its checkpoints. An operation of strength 0 draws
    none.

    Args:
        pixels: gray images of 0..255, [N, 1, H, W], uint8 or float. Further channels, such as a
            mask, are moved along with the image, and not changed otherwise.
        config: the strength of each operation.

    Returns:
        float32 of the same shape in 0..255.
    """
    return _apply(pixels, config.strengths())


def _apply(pixels: Tensor, strengths: dict[str, float], always: bool = False) -> Tensor:
    """Apply the operations of these strengths, each to its share of the images or `always`."""
    pixels = pixels.to(torch.float32, copy=True)  # it is written into
    if moves := {name: strengths[name] for name in MOVES if name in strengths}:
        rows = _draw_rows(pixels, 1 if always else MOVED_SHARE)
        pixels = _replace(pixels, rows, _move, moves)
    for name, change in CHANGES.items():
        if name in strengths:
            rows = _draw_rows(pixels, 1 if always else change.share)
            channels = pixels.shape[1] if change.moves else 1
            changed = _replace(pixels[:, :channels], rows, change.function, strengths[name])
            rest = pixels[:, channels:]
            pixels = torch.cat([changed, rest], dim=1) if rest.shape[1] else changed
    return pixels


# Drawn on the CPU, where the number of rows is known without waiting for a GPU.
def _draw_rows(pixels: Tensor, share: float) -> Tensor:
    """Return the indices of the images that are drawn, each with a probability of `share`."""
    return (torch.rand(len(pixels)) < share).nonzero().flatten()


def _replace(pixels: Tensor, rows: Tensor, function: Callable, *arguments: Any) -> Tensor:
    """Apply `function` to the images in `rows` and write the results into `pixels`."""
    if len(rows) == 0:
        return pixels
    if len(rows) == len(pixels):
        return function(pixels, *arguments).clamp_(0, 255)
    rows = transforms.send(rows, pixels)
    changed = function(pixels.index_select(0, rows), *arguments)
    return pixels.index_copy_(0, rows, changed.clamp_(0, 255))


def _draw(pixels: Tensor, low: float, high: float) -> Tensor:
    """Return a number in `low`..`high` for each image: [N], on the CPU."""
    return torch.empty(len(pixels)).uniform_(low, high)


def _around(
    function: Callable[[Tensor, Tensor], Tensor], middle: float, width: float, widest: float
) -> Callable[[Tensor, float], Tensor]:
    """Return a change whose strengths lie within `width`, at strength 1, of the one without effect.

    The width is never greater than `widest`.
    """

    def change(pixels: Tensor, strength: float) -> Tensor:
        limit = min(width * strength, widest)
        return function(pixels, _draw(pixels, middle - limit, middle + limit))

    return change


def zoom(pixels: Tensor, strength: float) -> Tensor:
    """Return magnifications by a factor of 0.9 to 1.1."""
    width = min(0.1 * strength, 0.5)
    share = 1 / _draw(pixels, 1 - width, 1 + width)
    return transforms.scaling(share, share)


def translate(pixels: Tensor, strength: float) -> Tensor:
    """Return translations by up to 5% of the width and of the height."""
    limit = min(0.05 * strength, 0.5)
    height, width = pixels.shape[-2:]
    right, down = _draw(pixels, -limit, limit), _draw(pixels, -limit, limit)
    return transforms.translation(right * width, down * height)


def crop(pixels: Tensor, strength: float) -> Tensor:
    """Return enlargements of windows of 60% to 100% of each side, stretched by up to 15%."""
    window = _draw(pixels, 1 / (1 + 0.67 * strength), 1)
    stretch = _draw(pixels, -0.075 * strength, 0.075 * strength)
    shares = [(window * x.exp()).clamp(0.2, 1.1) for x in (stretch, -stretch)]
    # The window lies anywhere within the image.
    centres = (
        _draw(pixels, -side / 2, side / 2) * (1 - share).clamp_min(0)
        for side, share in zip(pixels.shape[:-3:-1], shares, strict=True)
    )
    return transforms.translation(*centres) @ transforms.scaling(*shares)


def _move(pixels: Tensor, moves: dict[str, float]) -> Tensor:
    """Apply all moves in one bilinear interpolation."""
    matrices = (MOVES[name](pixels, strength) for name, strength in moves.items())
    return transforms.warp(pixels, reduce(torch.matmul, matrices))


def borrow_histogram(pixels: Tensor, strength: float) -> Tensor:
    """Move the gray levels up to all the way to those of another image, in the same order.

    The others are those of the batch, whatever their class and site.
    """
    before = torch.arange(len(pixels)).roll(1)  # the batch's order is random
    return transforms.match_levels(pixels, before, _draw(pixels, 0, min(strength, 1)))


def blur(pixels: Tensor, strength: float) -> Tensor:
    """Blur with a Gaussian of 0.1 to 1.6 pixels."""
    widest = 0.1 + 1.5 * strength
    # The kernel covers three standard deviations of the widest: one of 5 x 5 would reduce 1.6
    # pixels to 1.2.
    return transforms.blur(pixels, _draw(pixels, 0.1, widest), math.ceil(3 * widest))


def lower_resolution(pixels: Tensor, strength: float) -> Tensor:
    """Reduce to 40% to 100% of the pixels of each side, the same for all, and enlarge again."""
    # One share a call: hospitals differ in resolution, and images of several sizes are no batch.
    share = float(_draw(pixels[:1], max(0.1, 1 - 0.6 * strength), 1))
    return transforms.lower_resolution(pixels, share)


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
    kind = torch.randint(-2, 4, (len(pixels),)).clamp_min(0)  # 0 in half of the images; 1: black
    outside = pixels[transforms.send(torch.randperm(len(pixels)), pixels)]
    cells = int(torch.randint(3, 25, ()))
    field = transforms.send(torch.rand(len(pixels), 1, cells, cells) * 255, pixels)
    field = transforms.enlarge(field, pixels.shape[-2:])
    shares = transforms.send((torch.tensor([[0], [2], [3]]) == kind).float(), pixels)
    shares = shares[..., None, None, None]  # [3, N, 1, 1, 1]
    outside.mul_(shares[0]).addcmul_(shares[1], field)
    outside.addcmul_(shares[2], transforms.smooth(pixels))
    return transforms.replace_frame(pixels, outside, margins)


def print_markers(pixels: Tensor, strength: float) -> Tensor:
    """Print one or two letters, words or blocks of any size anywhere; of some, remove old ones.

    At a strength of 1 a mark is 3% to 20% of the width.
    """
    pixels = _replace(pixels, _draw_rows(pixels, 0.2), transforms.remove_markers, 0.3)
    for share in (1, 0.5):
        pixels = _replace(pixels, _draw_rows(pixels, share), _print_marker, strength)
    return pixels


def _print_marker(pixels: Tensor, strength: float) -> Tensor:
    which = torch.randint(len(transforms.TEXTS), (len(pixels),))
    places = torch.empty(len(pixels), 2).uniform_(-0.95, 0.95)
    sizes, grays = _draw(pixels, 0.03, min(0.2 * strength, 0.5)), _draw(pixels, 127.5, 255)
    return transforms.stamp_glyphs(pixels, which, places, sizes, grays)


def compress(pixels: Tensor, strength: float) -> Tensor:
    """Compress as JPEG with a quality of 90 to 30."""
    quality = _draw(pixels, 100 - 70 * strength, 100 - 10 * strength).clamp_min(5)
    return transforms.compress(pixels, quality)


def erase(pixels: Tensor, strength: float) -> Tensor:
    """Set a rectangle of 2% to 8% of the image, up to 3.3 times as long as wide, to black."""
    whole = torch.tensor(pixels.shape[-2:])
    area = _draw(pixels, 0.02, min(0.02 + 0.06 * strength, 0.3)) * whole.prod()
    upright = _draw(pixels, 0, 1) < 0.5
    ratio = torch.where(upright, _draw(pixels, 1, 3.3), _draw(pixels, 0.3, 1))
    sides = torch.stack([area * ratio, area / ratio], 1).sqrt().round().clamp_min(1).minimum(whole)
    starts = (torch.rand(len(pixels), 2) * (whole - sides + 1)).floor()
    return transforms.erase(pixels, starts, sides)


@dataclass(frozen=True)
class Change:
    """An operation, and the share of the images that it is applied to."""

    function: Callable[[Tensor, float], Tensor]
    share: float
    moves: bool = False  # it moves what is in the image, and a mask with it


MOVED_SHARE = 0.9  # the network also sees images that no interpolation has blurred
# Translation comes last, so that the zoom does not scale it.
MOVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rotation": lambda pixels, x: transforms.rotation(_draw(pixels, -7 * x, 7 * x)),  # degrees
    "zoom": zoom,
    "crop": crop,
    "translation": translate,
}
# In the order of the causes: exposure, detector, software, storage.
CHANGES: dict[str, Change] = {
    "flip": Change(lambda pixels, x: transforms.mirror(pixels, _draw(pixels, 0, 1) < x), 0.5, True),
    "histogram": Change(borrow_histogram, 0.4),
    "brightness": Change(_around(transforms.change_brightness, 0, 0.15 * 255, 0.5 * 255), 0.5),
    "contrast": Change(_around(transforms.change_contrast, 1, 0.25, 0.75), 0.5),
    "gamma": Change(_around(transforms.change_gamma, 1, 0.35, 0.75), 0.5),
    "sharpness": Change(
        lambda pixels, x: transforms.sharpen(pixels, _draw(pixels, 0, 1.2 * x)), 0.2
    ),
    "resolution": Change(lower_resolution, 0.2),
    "blur": Change(blur, 0.2),
    "noise": Change(lambda pixels, x: transforms.add_noise(pixels, 0.03 * 255 * x), 0.2),
    "frame": Change(hide_frame, 0.7),
    "marker": Change(print_markers, 0.5),
    "clahe": Change(lambda rows, x: transforms.equalise(rows, _draw(rows, 1, 1 + 2 * x)), 0.1),
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
        for axes, shown in zip(grid[row], [image, *changed], strict=True):
            axes.imshow(shown[0].numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        grid[row, 0].set_ylabel(title)
    grid[0, 0].set_title("unchanged")
    if off := [name for name in AUGMENTATIONS if name not in strengths]:
        figure.supxlabel(f"off: {', '.join(off)}")
    return figure
