"""Training-only augmentation, on a batch of tensors, on whatever device they are.

A new operation is one function, one entry of `MOVES` or `CHANGES`, and one field of
`AugmentConfig`. kornia does the work where it has a cheap way; each change is made to the
drawn images only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import TYPE_CHECKING

from pneumonia_hf.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


@dataclass
class AugmentConfig:
    """How strongly images are changed in training: 1 as usual, 0 not at all."""

    augment_strength: float = field(
        default=1.0, metadata={"help": "Multiplies all strengths below: 1 as usual, 0 none."}
    )
    augment_rotation: float = field(default=1.0, metadata={"help": "1: up to 7 degrees."})
    augment_zoom: float = field(default=1.0, metadata={"help": "1: up to a tenth in or out."})
    augment_translation: float = field(
        default=1.0, metadata={"help": "1: up to a twentieth of the width and of the height."}
    )
    augment_flip: float = field(
        default=0.0,
        metadata={"help": "1: half of the images are mirrored; the heart has a side, so 0."},
    )
    augment_brightness: float = field(
        default=1.0, metadata={"help": "1: up to 38 of 255 grays lighter or darker."}
    )
    augment_contrast: float = field(
        default=1.0, metadata={"help": "1: up to a quarter more or less."}
    )
    augment_gamma: float = field(default=1.0, metadata={"help": "1: gamma of 0.65 to 1.35."})
    augment_blur: float = field(
        default=1.0, metadata={"help": "1: a Gaussian of up to 1.6 pixels."}
    )
    augment_noise: float = field(
        default=1.0, metadata={"help": "1: a standard deviation of 7.6 of 255 grays."}
    )
    augment_clahe: float = field(
        default=1.0, metadata={"help": "Local contrast; 1: a clip limit of 1 to 3."}
    )
    augment_jpeg: float = field(default=1.0, metadata={"help": "1: a JPEG quality of 90 to 30."})
    augment_erasing: float = field(
        default=1.0, metadata={"help": "1: a rectangle of 0.02 to 0.08 of the image."}
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{one.name} is {value}; give 0 (off), 1 (as usual) or more.")
        if self.augment_flip > 1:
            raise UserError(
                f"augment_flip is {self.augment_flip}; 1 mirrors half of the images, give 0..1."
            )

    def strengths(self) -> dict[str, float]:
        """Return the strength of each operation that is on, by name."""
        own = {name: getattr(self, f"augment_{name}") for name in AUGMENTATIONS}
        products = {name: self.augment_strength * strength for name, strength in own.items()}
        return {name: strength for name, strength in products.items() if strength > 0}


def augment(pixels: Tensor, config: AugmentConfig) -> Tensor:
    """Return `pixels` with small random changes that leave the diagnosis as it was.

    Rotation, zoom and shift (how a child was laid), brightness, contrast and gamma (exposure),
    blur and noise (the detector), CLAHE and JPEG (what became of the image since), and a
    rectangle erased (markers, tubes). No flip unless asked for: the heart has a side.

    Args:
        pixels: gray images of 0..255, [N, 1, H, W], uint8 or float.
        config: how strong each operation is.

    Returns:
        float32 [N, 1, H, W] in 0..255. Randomness comes from torch's default generators, that
        of the CPU and (noise only) that of the pixels' device; the Trainer seeds both and saves
        them in its checkpoints. An operation of strength 0 draws nothing from them.
    """
    return _apply(pixels, config.strengths())


def _apply(pixels: Tensor, strengths: dict[str, float], always: bool = False) -> Tensor:
    """Apply the operations of these strengths, each to its share of the images or to all."""
    if not strengths:
        return pixels.float()
    pixels = pixels.float() / 255  # a copy, which is written over from here on
    moves = {name: strengths[name] for name in MOVES if name in strengths}
    if moves:
        rows = _draw_rows(pixels, 1 if always else MOVED_SHARE)
        pixels = _replace(pixels, rows, lambda drawn: _warp(drawn, moves))
    for name, change in CHANGES.items():
        if name in strengths:
            rows = _draw_rows(pixels, 1 if always else change.share)
            pixels = _replace(pixels, rows, change.function, strengths[name])
    return pixels.mul_(255)


# The number of drawn images is known on the CPU, so that a GPU is never waited for.
def _draw_rows(pixels: Tensor, share: float) -> Tensor:
    """Return the numbers of the images drawn, each with a probability of `share`: on the CPU."""
    import torch

    return (torch.rand(len(pixels)) < share).nonzero().flatten()


def _replace(pixels: Tensor, rows: Tensor, function: Callable, *arguments: float) -> Tensor:
    """Put what `function` makes of the images in `rows` into their places in `pixels`."""
    if len(rows) == 0:
        return pixels
    if len(rows) == len(pixels):
        return function(pixels, *arguments).clamp_(0, 1)
    rows = _send(rows, pixels)
    changed = function(pixels.index_select(0, rows), *arguments)
    return pixels.index_copy_(0, rows, changed.clamp_(0, 1))


def _draw(pixels: Tensor, low: float, high: float) -> Tensor:
    """Return a number in `low`..`high` for each image: [N], on the CPU."""
    import torch

    return torch.empty(len(pixels)).uniform_(low, high)


def _send(numbers: Tensor, pixels: Tensor) -> Tensor:
    """Return `numbers` on the device of `pixels`."""
    # CUDA alone has taken its copy when the call returns; elsewhere it could come too late.
    return numbers.to(pixels.device, non_blocking=pixels.is_cuda)


def rotate(pixels: Tensor, strength: float) -> Tensor:
    """Return rotations about the centre by up to 7 degrees either way."""
    import torch

    height, width = pixels.shape[-2:]
    limit = math.radians(7 * strength)
    angle = _draw(pixels, -limit, limit)
    turn = torch.eye(3).repeat(len(pixels), 1, 1)
    turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
    # Both axes have a length of 2 whatever the image's shape: pixels are not square in them.
    turn[:, 0, 1] = -angle.sin() * height / width
    turn[:, 1, 0] = angle.sin() * width / height
    return turn


def zoom(pixels: Tensor, strength: float) -> Tensor:
    """Return magnifications by a factor of 0.9 to 1.1."""
    import torch

    width = min(0.1 * strength, 0.5)
    scale = torch.eye(3).repeat(len(pixels), 1, 1)
    scale[:, 0, 0] = scale[:, 1, 1] = 1 / _draw(pixels, 1 - width, 1 + width)
    return scale


def translate(pixels: Tensor, strength: float) -> Tensor:
    """Return shifts by up to 5% of the width and of the height."""
    import torch

    limit = 2 * min(0.05 * strength, 0.5)
    shift = torch.eye(3).repeat(len(pixels), 1, 1)
    shift[:, 0, 2] = _draw(pixels, -limit, limit)
    shift[:, 1, 2] = _draw(pixels, -limit, limit)
    return shift


def _warp(pixels: Tensor, moves: dict[str, float]) -> Tensor:
    """Sample `pixels` once, bilinearly, where all moves together say; black from outside."""
    import torch
    from torch.nn.functional import grid_sample

    matrices = [MOVES[name](pixels, strength) for name, strength in moves.items()]
    matrix = reduce(torch.matmul, matrices)[:, None, :2]  # [N, 1, 2, 3]
    # The centres of pixels, as align_corners=False has them. affine_grid takes thrice the time.
    y, x = ((torch.arange(0.5, side) * 2 / side - 1)[:, None] for side in pixels.shape[-2:])
    along = x * matrix[..., 0]  # [N, W, 2]
    down = y * matrix[..., 1] + matrix[..., 2]  # [N, H, 2]
    grid = _send(along, pixels)[:, None] + _send(down, pixels)[:, :, None]  # [N, H, W, 2]
    return grid_sample(pixels, grid, align_corners=False)


def mirror(pixels: Tensor, strength: float) -> Tensor:
    """Mirror images left to right, with a probability of `strength`."""
    import torch

    mirrored = _send(_draw(pixels, 0, 1) < strength, pixels)
    return torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)


def change_brightness(pixels: Tensor, strength: float) -> Tensor:
    """Add up to 0.15 or take it away."""
    limit = min(0.15 * strength, 0.5)
    return pixels.add_(_send(_draw(pixels, -limit, limit), pixels)[:, None, None, None])


def change_contrast(pixels: Tensor, strength: float) -> Tensor:
    """Stretch the grays about the image's mean, by a factor of 0.75 to 1.25."""
    # About black, as kornia's RandomContrast does it, a factor of 1.25 would make consolidation,
    # heart and bone the same white.
    width = min(0.25 * strength, 0.75)
    factor = _send(_draw(pixels, 1 - width, 1 + width), pixels)[:, None, None, None]
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return pixels.mul_(factor).add_(mean * (1 - factor))


def change_gamma(pixels: Tensor, strength: float) -> Tensor:
    """Raise the grays to a power of 0.65 to 1.35."""
    # Not kornia's adjust_gamma: it makes a GPU wait for a number from the CPU.
    width = min(0.35 * strength, 0.75)
    return pixels.pow_(_send(_draw(pixels, 1 - width, 1 + width), pixels)[:, None, None, None])


def blur(pixels: Tensor, strength: float) -> Tensor:
    """Blur with a Gaussian of 0.1 to 1.6 pixels."""
    import torch
    from kornia.filters import gaussian_blur2d

    # On the CPU: gaussian_blur2d looks at the numbers before it moves them.
    widest = 0.1 + 1.5 * strength
    sigma = _draw(pixels, 0.1, widest)
    # Wide enough for three standard deviations of the widest: a kernel of 5 x 5 would make 1.2
    # pixels of 1.6. Not wider than the image, whose border is mirrored.
    reach = min(math.ceil(3 * widest), min(pixels.shape[-2:]) - 1)
    return gaussian_blur2d(pixels, (2 * reach + 1,) * 2, torch.stack([sigma, sigma], 1))


def add_noise(pixels: Tensor, strength: float) -> Tensor:
    """Add Gaussian noise with a standard deviation of 0.03."""
    import torch

    return pixels.add_(torch.randn_like(pixels), alpha=0.03 * strength)


def equalise(pixels: Tensor, strength: float) -> Tensor:
    """Equalise the histogram of each neighbourhood (CLAHE), with a clip limit of 1 to 3."""
    from kornia.augmentation import RandomClahe

    grid = tuple(max(1, min(8, side // 16)) for side in pixels.shape[-2:])
    return RandomClahe((1.0, 1 + 2 * strength), grid, p=1)(pixels)


# The luminance table of the JPEG standard (ITU-T T.81, table K.1), which quality 50 uses as it is.
JPEG_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def compress(pixels: Tensor, strength: float) -> Tensor:
    """Save as a JPEG of quality 90 to 30, and read it again.

    kornia's codec wants colour, codes it and rounds softly, for gradients: ten times the time.
    """
    import torch
    from torch.nn.functional import pad

    n, _, height, width = pixels.shape
    quality = 100 - _draw(pixels, 10 * strength, 70 * strength).clamp(0, 95)
    # As libjpeg scales its table.
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None]
    table = (torch.tensor(JPEG_TABLE) * scale + 0.5).floor().clamp(1, 255)[:, None, None]
    frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)
    cosines = torch.cos((2 * place + 1) * frequency * (math.pi / 16)) / 2
    cosines[0] /= math.sqrt(2)  # now orthonormal
    table, cosines = _send(table, pixels), _send(cosines, pixels)

    padded = pad(pixels * 255 - 128, (0, -width % 8, 0, -height % 8), mode="replicate")
    rows, columns = padded.shape[-2] // 8, padded.shape[-1] // 8
    blocks = padded.view(n, rows, 8, columns, 8).transpose(2, 3)
    blocks = cosines.T @ ((cosines @ blocks @ cosines.T / table).round() * table) @ cosines
    whole = blocks.transpose(2, 3).reshape(n, 1, rows * 8, columns * 8)
    return (whole[..., :height, :width] + 128) / 255


def erase(pixels: Tensor, strength: float) -> Tensor:
    """Black out a rectangle of 2% to 8% of the image."""
    from kornia.augmentation import RandomErasing

    return RandomErasing(scale=(0.02, min(0.02 + 0.06 * strength, 0.3)), p=1.0)(pixels)


@dataclass(frozen=True)
class Change:
    """A change of the pixels, and the share of the images that it is made to."""

    function: Callable[[Tensor, float], Tensor]
    share: float


MOVED_SHARE = 0.9  # the rest shows what an image looks like that no interpolation has softened
# The shift comes last, so that it is no further than it says, whatever the zoom.
MOVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rotation": rotate,
    "zoom": zoom,
    "translation": translate,
}
# In the order in which it happens to an image: exposure, detector, software, storage.
CHANGES: dict[str, Change] = {
    "flip": Change(mirror, 0.5),
    "brightness": Change(change_brightness, 0.5),
    "contrast": Change(change_contrast, 0.5),
    "gamma": Change(change_gamma, 0.5),
    "blur": Change(blur, 0.2),
    "noise": Change(add_noise, 0.2),
    "clahe": Change(equalise, 0.1),
    "jpeg": Change(compress, 0.1),
    "erasing": Change(erase, 0.2),
}
AUGMENTATIONS = MOVES | CHANGES


def draw_preview(pixels: Tensor, config: AugmentConfig, columns: int = 6, seed: int = 13) -> Figure:
    """Return a sheet of what `config` does to images: a row an operation, then all together.

    A single operation is made to happen in every column; all together happen as in training.
    The first column is the image as it was.

    Args:
        pixels: gray images of 0..255, [N, 1, H, W]; the rows take them in turn.
        config: how strong each operation is; those of strength 0 get no row.
        columns: images in a row, the untouched one included.
        seed: of the changes. A row's do not depend on the other rows.
    """
    import torch
    from matplotlib.figure import Figure

    strengths = config.strengths()
    titles = [f"{name}\n{strength:g}" for name, strength in strengths.items()]
    titles.append("all, as\nin training")
    changes = [{name: strength} for name, strength in strengths.items()] + [strengths]
    figure = Figure(figsize=(1.5 * columns + 0.4, 1.5 * len(titles) + 0.5), layout="constrained")
    grid = figure.subplots(len(titles), columns, squeeze=False)
    for row, title in enumerate(titles):
        image = pixels[row % len(pixels)].cpu()  # [1, H, W]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            copies = image.repeat(columns - 1, 1, 1, 1)
            changed = _apply(copies, changes[row], always=row < len(titles) - 1)
        for axes, one in zip(grid[row], [image, *changed], strict=True):
            axes.imshow(one[0].numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        grid[row, 0].set_ylabel(title)
    grid[0, 0].set_title("untouched")
    off = [name for name in AUGMENTATIONS if name not in strengths]
    if off:
        figure.supxlabel(f"off: {', '.join(off)}")
    return figure
