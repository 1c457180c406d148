"""Every operation on pixels, once, with a strength that the caller gives.

Augmentation draws the strengths, perturbed copies fix them, test-time augmentation has a few
positions. All operations take gray images, float32 [N, 1, H, W] in 0..255, on any device, and
return a new tensor, which may leave that range. A strength is one number or a number for each
image, [N], on the CPU or on the device of the images: a GPU is never waited for.

The unit is not 0..1: perturbed copies are rounded to whole gray levels, and many of them lie half
way between two, where the scale would decide. Sums are in place where the left side is new: a new
tensor of this size takes longer than the arithmetic.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

SOFT_EDGE = 0.04  # width of the transition at a frame, as a share of the side
# Side letters, views and labels as they are printed or exposed on films; and plain blocks.
TEXTS = ("R", "L", "R", "L", "AP", "PA", "PORTABLE", "ERECT", "SUPINE", "12:45", "kV 70", "#", "■")
SHARPENED = 0.02  # standard deviation of the Gaussian of an unsharp mask, as a share of the side
GLYPH_SIDE = 48  # pixels of a drawn text
# The luminance table of the JPEG standard (ITU-T T.81, table K.1), used as it is at quality 50.
JPEG_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


def send(numbers: Tensor, pixels: Tensor) -> Tensor:
    """Return `numbers` on the device of `pixels`."""
    # Only CUDA has copied `numbers` when the call returns; elsewhere they could change before.
    return numbers.to(pixels.device, non_blocking=pixels.is_cuda)


def _spread(strength: float | Tensor, pixels: Tensor) -> float | Tensor:
    """Return a strength so that it broadcasts against `pixels`."""
    if not isinstance(strength, Tensor):
        return strength
    return send(strength, pixels).view(-1, 1, 1, 1)


def _affine(*numbers: float | Tensor) -> Tensor:
    """Return matrices of the numbers of their first two rows: [1 or N, 3, 3], on the CPU."""
    columns = (torch.as_tensor(one).float().view(-1) for one in (*numbers, 0, 0, 1))
    return torch.stack(torch.broadcast_tensors(*columns), -1).view(-1, 3, 3)


def rotation(degrees: float | Tensor) -> Tensor:
    """Return the matrices for `warp` that rotate clockwise about the centre: [1 or N, 3, 3]."""
    angle = torch.as_tensor(degrees).double().deg2rad()
    return _affine(angle.cos(), angle.sin(), 0, -angle.sin(), angle.cos(), 0)


def scaling(x: float | Tensor, y: float | Tensor) -> Tensor:
    """Return the matrices for `warp` that show the shares `x` and `y` of the sides."""
    return _affine(x, 0, 0, 0, y, 0)


def translation(x: float | Tensor, y: float | Tensor) -> Tensor:
    """Return the matrices for `warp` that show what lies `x` and `y` pixels right and below."""
    return _affine(1, 0, x, 0, 1, y)


def warp(pixels: Tensor, matrix: Tensor) -> Tensor:
    """Return images, [N, C, H, W], in another position: one bilinear sampling, black outside.

    `matrix`, [1 or N, 3, 3] on the CPU, leads from a place in the result to its place in the
    image, both in pixels right of and below the centre. Several are combined by `@`.
    """
    height, width = pixels.shape[-2:]
    matrix = matrix[:, None, :2] / torch.tensor([[width / 2], [height / 2]])  # [N, 1, 2, 3]
    y, x = ((torch.arange(side) - (side - 1) / 2)[:, None] for side in (height, width))
    along = x * matrix[..., 0] + matrix[..., 2]  # [N, W, 2]
    down = y * matrix[..., 1]  # [N, H, 2]
    # affine_grid takes three times as long.
    grid = send(along, pixels)[:, None] + send(down, pixels)[:, :, None]  # [N, H, W, 2]
    return functional.grid_sample(pixels, grid.expand(len(pixels), -1, -1, -1), align_corners=False)


def enlarge(pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return images at another size, with bilinear interpolation."""
    return functional.interpolate(pixels, shape, mode="bilinear", align_corners=False)


def crop(pixels: Tensor, share: float) -> Tensor:
    """Keep the central `share` of each side, enlarged to the whole."""
    height, width = (round(side * share) for side in pixels.shape[-2:])
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    return enlarge(pixels[..., top : top + height, left : left + width], pixels.shape[-2:])


def lower_resolution(pixels: Tensor, share: float) -> Tensor:
    """Reduce to a share of the pixels of each side, and enlarge again."""
    shape = [max(8, round(side * share)) for side in pixels.shape[-2:]]
    return enlarge(functional.interpolate(pixels, shape, mode="area"), pixels.shape[-2:])


def mirror(pixels: Tensor, which: Tensor) -> Tensor:
    """Mirror the images for which `which`, bool [N], is true left to right."""
    return torch.where(_spread(which, pixels), pixels.flip(-1), pixels)


def change_brightness(pixels: Tensor, levels: float | Tensor) -> Tensor:
    """Add `levels` to the gray levels."""
    return pixels + _spread(levels, pixels)


def change_contrast(pixels: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply the differences from the image's mean by `factor`."""
    # Not the values themselves, as kornia's RandomContrast does: a factor of 1.25 would make
    # consolidation, heart and bone equally white.
    factor = _spread(factor, pixels)
    return (pixels * factor).add_(pixels.mean((1, 2, 3), keepdim=True) * (1 - factor))


def match_contrast(pixels: Tensor, donors: Tensor, share: float | Tensor) -> Tensor:
    """Move mean and standard deviation to those of `donors`, by `share` of the way."""
    (mean, spread), (wanted_mean, wanted_spread) = (
        (one.mean((1, 2, 3), keepdim=True), one.std((1, 2, 3), keepdim=True))
        for one in (pixels, donors)
    )
    matched = (pixels - mean) / spread.clamp_min(1) * wanted_spread + wanted_mean
    return torch.lerp(pixels, matched, _spread(share, pixels))


def change_gamma(pixels: Tensor, exponent: float | Tensor) -> Tensor:
    """Raise the gray levels, as shares of 255, to the power of `exponent`."""
    # Not kornia's adjust_gamma: it makes a GPU wait for a number from the CPU.
    return (pixels / 255).clamp_min_(0).pow_(_spread(exponent, pixels)).mul_(255)


def match_histogram(pixels: Tensor, donors: Tensor, share: float | Tensor) -> Tensor:
    """Move the histogram to that of `donors`, by `share` of the way, exactly.

    Equal gray levels become different ones where the donor has fewer of them.
    """
    ranks = pixels.flatten(1).argsort(dim=1)
    matched = torch.empty_like(pixels).flatten(1)
    matched.scatter_(1, ranks, donors.flatten(1).sort(dim=1).values)
    return torch.lerp(pixels, matched.view_as(pixels), _spread(share, pixels))


def match_levels(pixels: Tensor, order: Tensor, share: float | Tensor) -> Tensor:
    """Move the gray levels to those of the images `pixels[order]`, by `share` of the way.

    Like `match_histogram`, but equal gray levels stay equal, so that a black margin gets no
    pattern; and without its sorting, which takes seven times as long.
    """
    levels = pixels.flatten(1).round().clamp(0, 255).long()
    counts = torch.zeros(len(pixels), 256, device=pixels.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=counts.dtype))
    below = counts.cumsum(1)  # pixels at or below each level
    middle = below - counts / 2  # half of the pixels of a level are below it
    donors = below.index_select(0, send(order, pixels))
    table = torch.searchsorted(donors, middle).clamp_max(255).float()
    matched = table.gather(1, levels).view_as(pixels)
    return torch.lerp(pixels, matched, _spread(share, pixels))


def equalise(pixels: Tensor, clip_limit: Tensor) -> Tensor:
    """Equalise local histograms (CLAHE) with a clip limit for each image, [N] on the CPU."""
    from kornia.augmentation import RandomClahe

    grid = tuple(max(1, min(8, side // 16)) for side in pixels.shape[-2:])
    clahe = RandomClahe(grid_size=grid)
    limits = {"clip_limit_factor": clip_limit}
    return clahe.apply_transform(pixels / 255, limits, clahe.flags).mul_(255)


def blur(pixels: Tensor, sigma: float | Tensor, reach: int) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels, cut off at `reach` pixels.

    The border is mirrored, so `reach` ends at the width of the image.
    """
    # kornia's gaussian_blur2d takes 1.4 times as long.
    reach = max(1, min(reach, min(pixels.shape[-2:]) - 1))
    sigma = torch.as_tensor(sigma).float().view(-1, 1).clamp_min(1e-3)  # the sharpest
    limit = reach / math.sqrt(2)
    places = torch.linspace(-limit, limit, 2 * reach + 1)
    kernel = send(torch.softmax(-(places / sigma).square(), 1), pixels)
    count = len(kernel)  # 1, or a kernel an image
    for shape, padding in (((1, -1), (reach, reach, 0, 0)), ((-1, 1), (0, 0, reach, reach))):
        padded = functional.pad(pixels, padding, mode="reflect")
        groups = padded.view(-1, count, *padded.shape[-2:])
        blurred = functional.conv2d(groups, kernel.view(count, 1, *shape), groups=count)
        pixels = blurred.view_as(pixels)
    return pixels


def sharpen(pixels: Tensor, amount: float | Tensor) -> Tensor:
    """Add `amount` times the difference from a blurred copy (unsharp mask), as consoles do."""
    sigma = SHARPENED * min(pixels.shape[-2:])
    detail = pixels - blur(pixels, sigma, math.ceil(3 * sigma))
    return detail.mul_(_spread(amount, pixels)).add_(pixels)


def add_noise(
    pixels: Tensor, deviation: float | Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Add Gaussian noise with a standard deviation of `deviation` gray levels.

    It is drawn on the device of `generator`, by default by that of the images.
    """
    device = generator.device if generator else pixels.device
    noise = send(torch.randn(pixels.shape, generator=generator, device=device), pixels)
    return noise.mul_(_spread(deviation, pixels)).add_(pixels)


def compress(pixels: Tensor, quality: float | Tensor) -> Tensor:
    """Quantise as a JPEG does, on the device, without its rounding to whole gray levels.

    kornia's codec works on colour and rounds differentiably: it takes ten times as long.
    """
    n, _, height, width = pixels.shape
    quality = torch.as_tensor(quality).float().view(-1)
    # libjpeg's scale of the table.
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None]
    table = (torch.tensor(JPEG_TABLE) * scale + 0.5).floor().clamp(1, 255)[:, None, None]
    frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)
    cosines = torch.cos((2 * place + 1) * frequency * (math.pi / 16)) / 2
    cosines[0] /= math.sqrt(2)  # orthonormal
    table, cosines = send(table, pixels), send(cosines, pixels)

    padded = functional.pad(pixels - 128, (0, -width % 8, 0, -height % 8), mode="replicate")
    rows, columns = padded.shape[-2] // 8, padded.shape[-1] // 8
    blocks = padded.view(n, rows, 8, columns, 8).transpose(2, 3)
    blocks = cosines.T @ ((cosines @ blocks @ cosines.T / table).round() * table) @ cosines
    whole = blocks.transpose(2, 3).reshape(n, 1, rows * 8, columns * 8)
    return whole[..., :height, :width] + 128


def save_as_jpeg(pixels: Tensor, quality: int) -> Tensor:
    """Save as JPEG files, and read them again: what `compress` imitates where nothing may wait."""
    found = []
    for one in pixels.round().clamp(0, 255).byte().cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(one[0]).save(file, "jpeg", quality=quality)
        found.append(np.asarray(Image.open(file), np.float32)[None])
    return torch.from_numpy(np.stack(found)).to(pixels.device)


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


def replace_frame(pixels: Tensor, others: Tensor | float, margins: float | Tensor) -> Tensor:
    """Replace the frame by that of `others`; `margins` are a share, or as of `soft_window`."""
    if not isinstance(margins, Tensor):
        margins = torch.full((len(pixels), 4), margins)
    window = soft_window(*pixels.shape[-2:], send(margins, pixels))
    kept = pixels * window
    return kept.add_(window.neg_().add_(1).mul_(others))


def smooth(pixels: Tensor, cells: int = 8) -> Tensor:
    """Return the means of `cells` x `cells` parts of each image, interpolated to its size."""
    return enlarge(functional.adaptive_avg_pool2d(pixels, cells), pixels.shape[-2:])


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
    pixels: Tensor, which: Tensor, centres: Tensor, sizes: Tensor, grays: Tensor
) -> Tensor:
    """Print one glyph on each image.

    Args:
        pixels: [N, 1, H, W].
        which: indices of TEXTS: int64 [N], on the CPU as the rest.
        centres: x and y in -1..1: [N, 2].
        sizes: width of the text as a share of the image's width; negative: mirrored: [N].
        grays: gray level of the text in 0..255: [N].
    """
    glyphs, centres, sizes = (send(one, pixels) for one in (draw_glyphs()[which], centres, sizes))
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
    return (_spread(grays, pixels) - pixels).mul_(ink).add_(pixels)


def remove_markers(pixels: Tensor, share: float) -> Tensor:
    """Remove bright marks that are smaller than a tenth of the side, in the outer `share`.

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
    window = soft_window(*pixels.shape[-2:], pixels.new_full((len(pixels), 4), share))
    marks.mul_(window.neg_().add_(1))
    return torch.minimum(opened, pixels).sub_(pixels).mul_(marks).add_(pixels)


def _dilate(pixels: Tensor, side: int) -> Tensor:
    """Return the maximum over squares of `side` pixels, an odd number."""
    row = functional.max_pool2d(pixels, (1, side), 1, (0, side // 2))
    return functional.max_pool2d(row, (side, 1), 1, (side // 2, 0))


def erase(pixels: Tensor, starts: Tensor, sides: Tensor) -> Tensor:
    """Set a rectangle to black, given its first row and column and its sides in pixels: [N, 2]."""
    first, last = send(starts, pixels)[..., None], send(starts + sides, pixels)[..., None]
    inside = []
    for axis, length in enumerate(pixels.shape[-2:]):
        place = torch.arange(length, device=pixels.device)
        inside.append((place >= first[:, axis]) & (place < last[:, axis]))
    return pixels.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0)
