"""Images to fit the input gate to: X-rays in many looks, and what is no frontal chest X-ray.

Nothing is downloaded: the negatives are made from the X-rays themselves, drawn, or cut out of
photographs that come with matplotlib and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from pneumonia_hf.imaging import transforms

if TYPE_CHECKING:
    import torch

    Random = np.random.Generator
    Change = Callable[[Image.Image, Random], Image.Image]
    Drawing = Callable[[Random], Image.Image]

SIDE = 192  # pixels of what is drawn
WORDS = "the lungs are clear no effusion PATIENT 12 figure table and of in 0.93 kV date".split()
# Windows of a chest X-ray that show a part of it only: left, top, right, bottom, in shares.
PARTS = (
    (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0),  # a lung
    (0.0, 0.68, 1.0, 1.0), (0.1, 0.62, 0.9, 1.0),  # below the diaphragm
    (0.0, 0.0, 1.0, 0.32), (0.15, 0.0, 0.85, 0.35),  # neck and shoulders
    (0.0, 0.0, 0.3, 1.0), (0.7, 0.0, 1.0, 1.0),  # an edge
    (0.35, 0.1, 0.65, 0.9),  # the spine
)  # fmt: skip


def turn(*turns: Image.Transpose) -> Change:
    """Return what turns an image in one of these ways."""
    return lambda image, random: image.transpose(turns[random.integers(len(turns))])


def cut_part(image: Image.Image, random: Random) -> Image.Image:
    """Return one of PARTS, or a small window anywhere."""
    if random.random() < 0.35:
        size = random.uniform(0.2, 0.5, 2)
        left, top = random.uniform(0, 1 - size)
        window = np.array([left, top, left + size[0], top + size[1]])
    else:
        window = np.array(PARTS[random.integers(len(PARTS))])
        window = np.clip(window + random.uniform(-0.05, 0.05, 4), 0, 1)
    width, height = image.size
    left, top, right, bottom = (window * [width, height, width, height]).round().astype(int)
    return image.crop((left, top, max(right, left + 8), max(bottom, top + 8)))


def vary(pixels: torch.Tensor, random: Random) -> torch.Tensor:
    """Return images as other machines, software and people show them: float32 [N, 1, H, W].

    Position, margins, exposure, processing, noise, resolution, printed marks and compression
    change, each in a share of the images and far more than in training: a film must not be
    refused because of its look.
    """
    import torch

    pixels = pixels.float()
    count, side = len(pixels), pixels.shape[-1]

    def apply(share: float, change: Callable, *limits: tuple[float, float]) -> None:
        rows = np.flatnonzero(random.random(count) < share)
        if len(rows):
            strengths = [
                torch.from_numpy(random.uniform(*one, len(rows)).astype(np.float32))
                for one in limits
            ]
            pixels[rows] = change(pixels[rows], *strengths).clamp(0, 255)

    def move(some, degrees, x, y, right, down, border):
        # Margins are black, or now and then of another gray level.
        border = (255 * (border - 0.7).clamp_min(0) / 0.3)[:, None, None, None]
        matrix = transforms.translation(right * side, down * side) @ transforms.scaling(x, y)
        return transforms.warp(some - border, transforms.rotation(degrees) @ matrix) + border

    def sharpen(some, amount):
        blurred = transforms.blur(some, side / 20, side // 8)
        return some + amount[:, None, None, None] * (some - blurred)

    def collimate(some, *margins):
        return transforms.replace_frame(some, 0.0, torch.stack(margins, 1))

    def mark(some, x, y, size, gray):
        which = torch.from_numpy(random.integers(0, len(transforms.TEXTS), len(some)))
        return transforms.stamp_glyphs(some, which, torch.stack([x, y], 1), size, gray)

    def reduce(some, shares):
        pairs = zip(some.split(1), shares.tolist(), strict=True)
        return torch.cat([transforms.lower_resolution(*pair) for pair in pairs])

    def disturb(some, deviation):
        noise = random.standard_normal(some.shape, np.float32)
        return some + deviation[:, None, None, None] * torch.from_numpy(noise)

    apply(0.1, lambda some: some.flip(-1))
    apply(0.7, move, (-12, 12), (0.82, 1.25), (0.82, 1.25), (-0.07, 0.07), (-0.07, 0.07), (0, 1))
    apply(0.4, lambda some, x: transforms.change_gamma(some, 2**x), (-1, 1))
    apply(0.3, sharpen, (0.3, 1.5))
    apply(0.5, transforms.change_contrast, (0.45, 1.7))
    apply(0.4, transforms.change_brightness, (-45, 45))
    apply(0.3, lambda some, x: transforms.blur(some, x, 6), (0.3, 2))
    apply(0.3, disturb, (2, 10))
    apply(0.2, collimate, *[(0, 0.15)] * 4)
    for _ in range(2):
        apply(0.3, mark, (-0.95, 0.95), (-0.95, 0.95), (0.04, 0.2), (150, 255))
    apply(0.2, reduce, (0.3, 0.8))
    apply(0.3, transforms.compress, (15, 80))
    return pixels


@lru_cache(maxsize=1)
def list_photographs() -> list[Image.Image]:
    """Return the photographs that come with matplotlib and scikit-learn."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    with get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("L")
    return [portrait, *(Image.fromarray(one).convert("L") for one in load_sample_images().images)]


def cut_photograph(random: Random) -> Image.Image:
    """Return a part of a photograph, in any position."""
    photographs = list_photographs()
    image = photographs[random.integers(len(photographs))]
    share = random.uniform(0.15, 1, 2) ** 0.7
    size = np.maximum(16, np.array(image.size) * share).astype(int)
    left, top = (int(random.integers(0, a - b + 1)) for a, b in zip(image.size, size, strict=True))
    part = image.crop((left, top, left + int(size[0]), top + int(size[1])))
    turned = part.transpose(Image.Transpose(random.integers(7)))
    return ImageOps.invert(turned) if random.random() < 0.2 else turned


def draw_field(random: Random) -> Image.Image:
    """Return noise of any grain, from one gray level to white noise; or a gradient."""
    if random.random() < 0.25:
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        a, b, c = random.normal(size=3)
        return _stretch(a * x + b * y + c * np.hypot(x - random.random(), y - random.random()))
    cells = int(2 ** random.uniform(0, 7.5))
    coarse = random.normal(0, 2 ** random.uniform(0, 6.5), (cells, cells)) + random.uniform(0, 255)
    image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return image.resize((SIDE, SIDE), Image.Resampling(int(random.choice([0, 2, 3]))))


def draw_pattern(random: Random) -> Image.Image:
    """Return stripes, a chessboard or rings."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle, cell = random.uniform(0, np.pi), 2 ** random.uniform(1.5, 6)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = random.integers(3)
    waves = (
        np.sin(u * np.pi / cell),
        np.sin(u * np.pi / cell) * np.sin(v * np.pi / cell),
        np.sin(np.hypot(x - random.uniform(0, SIDE), y - random.uniform(0, SIDE)) * np.pi / cell),
    )[kind]
    sharp = np.sign(waves) if random.random() < 0.5 else waves
    low, high = np.sort(random.uniform(0, 255, 2))
    return Image.fromarray((low + (sharp + 1) / 2 * (high - low)).astype(np.uint8))


def draw_shapes(random: Random) -> Image.Image:
    """Return a few to many ellipses, rectangles, lines and triangles, sharp or blurred."""
    image = Image.new("L", (SIDE, SIDE), int(random.integers(256)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(2 ** random.uniform(0, 6))):
        x, y = random.uniform(-0.2 * SIDE, SIDE, 2)
        width, height = 2 ** random.uniform(2, 7, 2)
        box, gray = (x, y, x + width, y + height), int(random.integers(256))
        kind, thick = random.integers(4), int(random.integers(1, 8))
        if kind == 0:
            draw.ellipse(box, gray if random.random() < 0.7 else None, gray, thick)
        elif kind == 1:
            draw.rectangle(box, gray if random.random() < 0.7 else None, gray, thick)
        elif kind == 2:
            draw.line(box, gray, thick)
        else:
            draw.polygon([tuple(random.uniform(0, SIDE, 2)) for _ in range(3)], gray)
    return _finish(image, random)


def draw_fractal(random: Random, side: int = SIDE) -> Image.Image:
    """Return noise with the spectrum of photographs: the power falls with the frequency."""
    x, y = np.fft.rfftfreq(side), np.fft.fftfreq(side)[:, None]
    frequency = np.hypot(x * random.uniform(0.5, 2), y) + 1 / side
    spectrum = np.fft.rfft2(random.normal(size=(side, side)))
    return _stretch(np.fft.irfft2(spectrum / frequency ** random.uniform(0.6, 2.2), (side, side)))


def draw_scene(random: Random) -> Image.Image:
    """Return things of all sizes that hide each other, with textures and shades: dead leaves.

    Such images have the statistics of photographs (Lee, Mumford and Huang 2001).
    """
    image = draw_fractal(random)
    for size in sorted(SIDE * random.uniform(0.03, 1, int(random.integers(10, 60))) ** 2)[::-1]:
        texture = draw_fractal(random, 64).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        texture = Image.blend(texture, Image.new("L", (SIDE, SIDE), int(random.integers(256))), 0.6)
        mask = Image.new("L", (SIDE, SIDE))
        x, y = random.uniform(0, SIDE, 2)
        across, along = size * random.uniform(0.3, 1, 2)
        box = (x - across, y - along, x + across, y + along)
        draw = ImageDraw.Draw(mask)
        (draw.ellipse if random.random() < 0.6 else draw.rectangle)(box, 255)
        image.paste(texture, mask=mask.rotate(random.uniform(0, 90), center=(x, y)))
    return _finish(image, random)


def draw_slice(random: Random) -> Image.Image:
    """Return a section through a body, as of CT or MR: organs of any gray within a rim."""
    image = Image.new("L", (SIDE, SIDE), int(random.integers(30)))
    draw, radii = ImageDraw.Draw(image), random.uniform(0.55, 1, 2)

    def place(x: float, y: float, width: float, height: float, gray: float) -> None:
        box = np.array([x - width, y - height, x + width, y + height])
        draw.ellipse(tuple((box + 1) / 2 * SIDE), int(gray))

    for share in (1, 0.94, 0.88):
        place(0, 0, *share * radii, random.uniform(40, 255))
    lungs = random.uniform(0, 40) if random.random() < 0.5 else None
    if lungs is not None:
        for side in (-1, 1):
            place(side * 0.45 * radii[0], 0, *random.uniform(0.25, 0.4, 2) * radii, lungs)
    for _ in range(int(random.integers(3, 25))):
        x, y = random.uniform(-0.6, 0.6, 2) * radii
        place(x, y, *random.uniform(0.03, 0.3, 2) * radii, random.uniform(30, 255))
    return _finish(image.rotate(random.choice([0, 0, 90, 180])), random)


def draw_text(random: Random) -> Image.Image:
    """Return lines of words, as of a page or a screen, with a box here and there."""
    paper, ink = (int(one) for one in random.integers(0, 256, 2))
    if random.random() < 0.6:
        paper, ink = 255 - int(random.integers(40)), int(random.integers(60))
    image = Image.new("L", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(image)
    size = int(random.integers(7, 40))
    font, left = ImageFont.load_default(size), int(random.integers(0, SIDE // 3))
    for top in range(int(random.integers(0, SIDE // 2)), SIDE, int(size * random.uniform(1, 2.5))):
        if random.random() < 0.85:
            draw.text((left, top), " ".join(random.choice(WORDS, 12)), ink, font)
    for _ in range(int(random.integers(0, 4))):
        x, y = random.uniform(0, SIDE, 2)
        draw.rectangle((x, y, x + SIDE / 4, y + SIDE / 5), int(random.integers(256)), ink)
    return _finish(image, random)


def draw_cartoon(random: Random) -> Image.Image:
    """Return a drawn chest: two dark lungs in a bright trunk, with or without ribs and a heart."""
    dark, bright = random.uniform(10, 90), random.uniform(120, 240)
    image = Image.new("L", (SIDE, SIDE), int(random.choice([bright, random.uniform(0, 60)])))
    draw = ImageDraw.Draw(image)

    def place(left: float, top: float, right: float, bottom: float, gray: float) -> None:
        jitter = random.uniform(-0.03, 0.03, 4)
        box = (np.array([left, top, right, bottom]) + jitter) * SIDE
        draw.ellipse(tuple(box), int(gray))

    place(-0.1, 0.02, 1.1, 1.3, bright)
    for left in (0.12, 0.56):
        place(left, 0.12, left + 0.32, random.uniform(0.75, 0.95), dark)
    draw.rectangle((0.46 * SIDE, 0, 0.54 * SIDE, SIDE), int(min(255, bright + 15)))
    if random.random() < 0.7:
        place(0.38, 0.45, 0.7, 0.85, bright)
    for number in range(int(random.choice([0, 6, 8, 10]))):
        top = (0.15 + 0.08 * number) * SIDE
        for left, start, end in ((0.08, 200, 330), (0.52, 210, 340)):
            box = (left * SIDE, top, (left + 0.4) * SIDE, top + 0.2 * SIDE)
            draw.arc(
                box, start, end, int(dark + random.uniform(20, 70)), int(random.integers(1, 5))
            )
    return _finish(image, random)


def _finish(image: Image.Image, random: Random) -> Image.Image:
    """Blur some drawings, and add grain to some."""
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 4)))
    if random.random() < 0.5:
        grain = random.normal(0, random.uniform(2, 15), (image.height, image.width))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return image


def _stretch(values: np.ndarray) -> Image.Image:
    low, spread = values.min(), np.ptp(values)
    return Image.fromarray(((values - low) / max(spread, 1e-9) * 255).astype(np.uint8))


def project_body(random: Random) -> Image.Image:
    """Return an X-ray of a body that is none: soft tissue with bones in it, by their thickness.

    A limb, a hand, a skull, a trunk with a spine but no lungs, or rods and balls in no order.
    """
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    thickness = np.zeros((SIDE, SIDE))

    def rod(start, end, radius, density=1.0) -> None:
        along = np.subtract(end, start)
        place = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / (along @ along + 1e-9)
        place = np.clip(place, 0, 1)
        square = (x - start[0] - place * along[0]) ** 2 + (y - start[1] - place * along[1]) ** 2
        thickness[:] += density * 2 * np.sqrt(np.clip(radius**2 - square, 0, None))

    def ball(centre, radii, density=1.0) -> None:
        square = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2
        thickness[:] += density * 2 * min(radii) * np.sqrt(np.clip(1 - square, 0, None))

    def bone(start, end, radius) -> None:
        rod(start, end, radius, 3)
        rod(start, end, 0.6 * radius, -2)  # marrow
        for joint in (start, end):
            ball(joint, (1.4 * radius, 1.4 * radius), 1.5)

    kind = random.integers(5)
    if kind == 0:  # a limb of one or two bones
        reach, width = random.uniform(0.6, 1.4), random.uniform(0.15, 0.4)
        rod((0, -reach), (0, reach), width)
        for place in random.choice([0, 1]) * np.array([-0.4, 0.4]) * width:
            bone((place, -reach), (place, reach), width * random.uniform(0.15, 0.35))
    elif kind == 1:  # a hand
        ball((0, 0.4), (0.4, 0.4), 0.7)
        for angle in np.linspace(-0.6, 0.6, 5) + random.normal(0, 0.05):
            tip = np.array([np.sin(angle), -np.cos(angle)])
            rod((0, 0.4), tip * 0.9, 0.1)
            for near, far in ((0.05, 0.4), (0.45, 0.65), (0.7, 0.85)):
                bone(tip * near, tip * far, 0.035)
    elif kind == 2:  # a skull
        radii = random.uniform(0.5, 0.9, 2)
        ball((0, 0), radii, 2.5)
        ball((0, 0), 0.93 * radii, -1.6)
        for _ in range(8):
            ball(random.uniform(-0.4, 0.4, 2), random.uniform(0.05, 0.2, 2), random.uniform(-1, 2))
    elif kind == 3:  # a trunk without lungs: spine, pelvis, gas
        ball((0, 0), (random.uniform(0.8, 1.5), random.uniform(1, 2)), 1)
        for top in np.arange(-1.2, 1.2, random.uniform(0.15, 0.35)):
            ball((random.normal(0, 0.02), top), (random.uniform(0.1, 0.2), 0.1), 3)
        if random.random() < 0.5:
            for side in (-1, 1):
                ball((side * 0.5, 0.4), (0.35, 0.4), 1.5)
                bone((side * 0.6, 0.6), (side * 0.7, 1.3), 0.12)
        for _ in range(int(random.integers(0, 12))):
            ball(random.uniform(-0.7, 0.7, 2), random.uniform(0.05, 0.2, 2), -random.uniform(0, 1))
    else:
        for _ in range(int(random.integers(2, 9))):
            rod(*random.uniform(-1, 1, (2, 2)), random.uniform(0.03, 0.3), random.uniform(0.3, 3))
            ball(random.uniform(-1, 1, 2), random.uniform(0.05, 0.5, 2), random.uniform(-0.5, 2))
    grain = Image.fromarray(random.normal(0, 0.15, (24, 24)).astype(np.float32))
    thickness = np.clip(thickness, 0, None) * (1 + np.asarray(grain.resize((SIDE, SIDE), 3)))
    gray = 1 - np.exp(-thickness * random.uniform(0.5, 2))
    turned = _stretch(gray).rotate(random.uniform(-180, 180) * (random.random() < 0.5))
    zoom = random.uniform(0, 0.25) * SIDE
    return _finish(turned.crop((zoom, zoom, SIDE - zoom, SIDE - zoom)), random)


# What is made of chest X-rays, and what is drawn: functions by the kinds of `inference.frontal`.
CHANGES: dict[str, Change] = {
    "rotated": turn(Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
    "upside_down": turn(Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM),
    "inverted": lambda image, _: ImageOps.invert(image),
    "part": cut_part,
}
DRAWINGS: dict[str, tuple[Drawing, ...]] = {
    "no_xray": (
        *(cut_photograph, draw_scene, draw_fractal, draw_field, draw_pattern, draw_shapes),
        *(draw_text, draw_cartoon),
    ),
    "other_xray": (project_body, project_body, project_body, draw_slice),
}
HELD_OUT = (72, 108, 252, 288)  # angles of side views that the gate is tested on
PHANTOMS = 18  # films of each other angle


def draw_phantoms(random: Random) -> list[tuple[str, Image.Image]]:
    """Return the kinds and images of simulated films: side views, and frontal ones.

    All are of one patient. The frontal ones keep the gate from refusing what is simulated.
    """
    from pneumonia_hf.imaging.phantom import SIDE_ANGLES, simulate, simulate_side_view

    def expose(view: Callable, *arguments: int) -> Image.Image:
        found = view(*arguments, exposure=random.uniform(0.6, 1.6), noise=random.uniform(0, 4))
        image = found if isinstance(found, Image.Image) else found[0]
        left, top, right, bottom = random.uniform(0, 0.15, 4) * (random.random() < 0.6)
        width, height = image.size
        return image.crop(
            (left * width, top * height, width - right * width, height * (1 - bottom))
        )

    angles = [one for one in SIDE_ANGLES if one not in HELD_OUT and 45 < one % 180 < 135]
    sides = [("side", expose(simulate_side_view, one)) for one in angles for _ in range(PHANTOMS)]
    return sides + [("frontal", expose(simulate)) for _ in range(4 * PHANTOMS)]
