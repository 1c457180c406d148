"""Operations on pixels: each by a case worked out by hand, and without effect at no strength."""

import io
import math

import numpy as np
import pytest
import torch
from helpers import draw_xray
from PIL import Image

from pneumonia_hf.imaging import transforms

NONE = torch.zeros(6, dtype=torch.long)
IDENTITIES = {
    "warp": lambda pixels: transforms.warp(
        pixels,
        transforms.rotation(0) @ transforms.scaling(1, 1) @ transforms.translation(0, 0),
    ),
    "crop": lambda pixels: transforms.crop(pixels, 1),
    "lower_resolution": lambda pixels: transforms.lower_resolution(pixels, 1),
    "sharpen": lambda pixels: transforms.sharpen(pixels, 0),
    "mirror": lambda pixels: transforms.mirror(pixels, NONE.bool()),
    "change_brightness": lambda pixels: transforms.change_brightness(pixels, NONE),
    "change_contrast": lambda pixels: transforms.change_contrast(pixels, torch.ones(6)),
    "match_contrast": lambda pixels: transforms.match_contrast(pixels, pixels.flip(0), 0),
    "change_gamma": lambda pixels: transforms.change_gamma(pixels, 1),
    "match_histogram": lambda pixels: transforms.match_histogram(pixels, pixels.flip(0), 0),
    "match_levels": lambda pixels: transforms.match_levels(pixels, NONE, torch.zeros(6)),
    "blur": lambda pixels: transforms.blur(pixels, torch.zeros(6), 3),
    "add_noise": lambda pixels: transforms.add_noise(pixels, 0),
    "replace_frame": lambda pixels: transforms.replace_frame(pixels, pixels.flip(0), 0.0),
    "stamp_glyphs": lambda pixels: transforms.stamp_glyphs(
        pixels, NONE, torch.full((6, 2), 3.0), torch.full((6,), 0.1), torch.full((6,), 255.0)
    ),
    "remove_markers": lambda pixels: transforms.remove_markers(pixels, 0.0),
    "erase": lambda pixels: transforms.erase(pixels, torch.zeros(6, 2), torch.zeros(6, 2)),
}


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    images = [draw_xray(seed, bool(seed % 2), (97, 80)) for seed in range(6)]
    return torch.stack([torch.from_numpy(np.array(one)).float() for one in images])[:, None]


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_operation_of_no_strength_changes_nothing(name, pixels):
    given = pixels.clone()
    torch.testing.assert_close(IDENTITIES[name](given), pixels, atol=2e-3, rtol=0)
    assert torch.equal(given, pixels)


EACH = torch.tensor([0.3, 0.8, 1.0, 1.2, 1.7, 2.5])  # a strength for each of six images
STRENGTHS = {
    "change_brightness": lambda pixels, x: transforms.change_brightness(pixels, x * 10),
    "change_contrast": lambda pixels, x: transforms.change_contrast(pixels, x),
    "match_contrast": lambda pixels, x: transforms.match_contrast(pixels, pixels + 9, x / 3),
    "change_gamma": lambda pixels, x: transforms.change_gamma(pixels, x),
    "match_histogram": lambda pixels, x: transforms.match_histogram(pixels, pixels + 9, x / 3),
    "blur": lambda pixels, x: transforms.blur(pixels, x, 7),
    "compress": lambda pixels, x: transforms.compress(pixels, x * 30),
    "warp": lambda pixels, x: transforms.warp(pixels, transforms.rotation(x)),
    "replace_frame": lambda pixels, x: transforms.replace_frame(
        pixels, 90.0, torch.as_tensor(x).view(-1, 1).expand(len(pixels), 4) / 10
    ),
}


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_for_each_image_equals_one_number_for_each_alone(name, pixels):
    given, function = pixels.clone(), STRENGTHS[name]
    together = function(given, EACH)
    alone = [function(pixels[n : n + 1], x.item()) for n, x in enumerate(EACH)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-3, rtol=1e-4)
    assert torch.equal(given, pixels)
    assert ((together - pixels).abs().amax((1, 2, 3)) > 0.5).sum() >= 5


def find_spot(pixels: torch.Tensor) -> list[float]:
    """Return the centroid of an image's gray levels, right of and below its centre, in pixels."""
    light = pixels[0, 0] / pixels.sum()
    y, x = (torch.arange(side) - (side - 1) / 2 for side in light.shape)
    return [float((light.sum(0) * x).sum()), float((light.sum(1) * y).sum())]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (transforms.rotation(30), [17.32, 10]),  # clockwise, though the pixels are not square
        (transforms.scaling(0.5, 1), [40, 0]),
        (transforms.translation(5, -3), [15, 3]),
        # The first matrix is the last to move the image.
        (transforms.translation(5, 0) @ transforms.scaling(0.5, 0.5), [30, 0]),
        (transforms.scaling(0.5, 0.5) @ transforms.translation(5, 0), [35, 0]),
    ],
)
def test_matrices_move_a_spot_as_documented(matrix, expected):
    pixels = torch.zeros(1, 1, 50, 100)
    pixels[..., 23:27, 68:72] = 200.0  # 20 pixels right of the centre
    assert find_spot(transforms.warp(pixels, matrix)) == pytest.approx(expected, abs=0.1)


def test_warping_equals_the_rotation_of_torchvision():
    from torchvision.transforms.v2.functional import InterpolationMode, rotate

    pixels = torch.rand(2, 1, 61, 40) * 255
    for degrees in (5, -12.5):
        expected = rotate(pixels, degrees, InterpolationMode.BILINEAR)
        found = transforms.warp(pixels, transforms.rotation(-degrees))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("sigma", [0.9, 1.8, 3.6])
def test_blurring_equals_that_of_torchvision(sigma, pixels):
    from torchvision.transforms.v2.functional import gaussian_blur

    reach = int(3 * sigma)
    expected = gaussian_blur(pixels, 2 * reach + 1, sigma)
    torch.testing.assert_close(transforms.blur(pixels, sigma, reach), expected, atol=1e-3, rtol=0)


def test_blur_is_as_wide_as_documented():
    """The measured spread of a point is the standard deviation."""
    point = torch.zeros(2, 1, 65, 65)
    point[..., 32, 32] = 1
    wide = torch.tensor([1.6, 3.1])
    for image, expected in zip(transforms.blur(point, wide, math.ceil(3 * 3.1)), wide, strict=True):
        assert image.sum().item() == pytest.approx(1, abs=1e-4)
        found = (image[0].sum(dim=0) * (torch.arange(65.0) - 32) ** 2).sum().sqrt()
        assert found.item() == pytest.approx(expected.item(), rel=0.02)
    small = transforms.blur(torch.rand(2, 1, 6, 6), 4.0, 19)  # wider than the image
    assert small.shape == (2, 1, 6, 6) and torch.isfinite(small).all()


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 90])
def test_jpeg_equals_a_jpeg_file(quality):
    image = draw_xray(1, ill=True, size=(100, 90))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    read = torch.from_numpy(np.array(Image.open(file))).float()
    pixels = torch.from_numpy(np.array(image)).float()[None, None]
    assert torch.equal(transforms.save_as_jpeg(pixels, quality)[0, 0], read)
    found = transforms.compress(pixels, quality)[0, 0]
    assert (found - read).abs().mean() < 0.6  # the file's gray levels are whole numbers


def measure_blocks(pixels: torch.Tensor) -> float:
    """Return the ratio of gray level steps between blocks of 8 to those within them."""
    steps = (pixels[..., 1:] - pixels[..., :-1]).abs().mean((0, 1, 2))
    between = torch.arange(len(steps)) % 8 == 7
    return (steps[between].mean() / steps[~between].mean()).item()


def test_jpeg_shows_blocks_of_eight(pixels):
    assert measure_blocks(pixels) < 1.1
    assert measure_blocks(transforms.compress(pixels, torch.full((6,), 10.0))) > 1.3


def test_gamma_and_contrast_equal_the_formulas(pixels):
    # A gray level of 51 is a fifth of 255.
    assert transforms.change_gamma(torch.full((1, 1, 2, 2), 51.0), 2).unique().tolist() == (
        pytest.approx([10.2])
    )
    halves = torch.tensor([100.0, 200.0]).repeat(1, 1, 2, 1)
    assert transforms.change_contrast(halves, 0.5).unique().tolist() == [125, 175]
    matched = transforms.match_contrast(halves, halves * 0.5 + 20, 1.0)
    assert matched.unique().tolist() == pytest.approx([70, 120])


def test_histogram_becomes_that_of_the_donor():
    own, donor = (torch.rand(1, 1, 16, 16) * scale for scale in (50, 255))
    found = transforms.match_histogram(own, donor, 1.0)
    assert torch.equal(found.flatten().sort().values, donor.flatten().sort().values)
    assert torch.equal(found.flatten().argsort(), own.flatten().argsort())


def test_both_ways_to_take_over_a_histogram_agree_where_levels_are_not_shared(pixels):
    batch = torch.cat([pixels[:1], pixels[1:2] * 0.5 + 60])
    exact = transforms.match_histogram(batch, batch.flip(0), 1.0)
    found = transforms.match_levels(batch, torch.tensor([1, 0]), torch.ones(2))
    assert (exact - found).abs().mean() < 3
    assert (exact - batch).abs().mean() > 20
    own = transforms.match_levels(pixels, torch.arange(6), torch.ones(6))
    assert torch.equal(own, pixels)
    # By levels, equal gray levels stay equal.
    for level in batch[0].round().unique():
        assert found[0][batch[0].round() == level].unique().numel() == 1


def test_local_contrast_rises_with_the_clip_limit_of_each_image(pixels):
    alike = pixels[:1].repeat(2, 1, 1, 1)
    low, high = (
        one.unfold(1, 10, 10).unfold(2, 10, 10).std((-1, -2)).mean()
        for one in transforms.equalise(alike, torch.tensor([1.0, 3.0]))
    )
    assert high > 1.2 * low


def test_soft_window_equals_the_ramps_by_hand():
    window = transforms.soft_window(100, 50, torch.tensor([[0.2, 0.1, 0.0, 0.0]]))[0, 0]
    assert window.shape == (100, 50)
    assert (window == window[:, :1]).all()  # no margin at the sides
    rows = window[:, 0]
    # A margin of 20 rows with an edge of 4: half way at row 20, that is between 19 and 20.
    assert transforms.SOFT_EDGE == 0.04
    assert rows[18:22].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=1e-5)
    assert rows[:18].sum() == 0 and (rows[22:88] == 1).all() and rows[92:].sum() == 0


def test_small_bright_marks_in_the_outer_part_are_removed_and_nothing_else():
    pixels = torch.full((1, 1, 100, 100), 60.0)
    pixels[..., 40:90, 30:70] = 200  # large, like a heart
    clean = pixels.clone()
    pixels[..., 5:10, 5:10] = 250
    pixels[..., 50, 20] = 250  # small, but in the inner part
    found = transforms.remove_markers(pixels, 0.15)
    assert torch.equal(found[..., :15, :15], clean[..., :15, :15])
    assert found[..., 50, 20] == 250
    assert torch.equal(found[..., 40:90, 30:70], clean[..., 40:90, 30:70])


def test_every_text_is_drawn():
    glyphs = transforms.draw_glyphs()
    assert (glyphs.amax((1, 2, 3)) > 0.8).all()
    assert ((glyphs > 0.5).float().mean((1, 2, 3)) > 0.02).all()
    assert (glyphs[..., 0, :] == 0).all()  # or the border of a glyph would be smeared


def test_a_glyph_is_printed_where_as_large_and_as_gray_as_asked():
    block = torch.tensor([transforms.TEXTS.index("■")])
    black = torch.zeros(1, 1, 80, 120)
    place, size, gray = torch.tensor([[0.5, -0.5]]), torch.tensor([0.2]), torch.tensor([180.0])
    found = transforms.stamp_glyphs(black, block, place, size, gray)
    assert found.max() == pytest.approx(180)
    rows, columns = (found[0, 0] > 90).nonzero().T
    centre = rows.float().mean() + 0.5, columns.float().mean() + 0.5
    assert centre == pytest.approx((20, 90), 0.02)
    assert columns.max() - columns.min() + 1 == pytest.approx(0.2 * 120 * 40 / 48, abs=1)


def test_a_rectangle_is_erased_and_nothing_else():
    white = torch.full((2, 1, 8, 9), 255.0)
    found = transforms.erase(white, torch.tensor([[1, 2], [0, 0]]), torch.tensor([[3, 4], [8, 9]]))
    assert (found[0, 0, 1:4, 2:6] == 0).all() and (found[0] == 0).sum() == 12
    assert (found[1] == 0).all()
