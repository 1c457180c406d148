from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from helpers import draw_xray
from torch import Tensor

from pneumonia_hf.evaluation.perturbations import PERTURBATIONS, Context
from pneumonia_hf.training import augment as module
from pneumonia_hf.training.augment import (
    AUGMENTATIONS,
    CHANGES,
    AugmentConfig,
    augment,
    draw_preview,
)

OFF = {f"augment_{name}": 0.0 for name in AUGMENTATIONS}
every_operation = pytest.mark.parametrize("name", sorted(AUGMENTATIONS))


def alone(name: str, strength: float = 1.0) -> AugmentConfig:
    """Return a config in which one operation is on."""
    return AugmentConfig(**OFF | {"augment_strength": strength, f"augment_{name}": 1.0})


def certainly(name: str, pixels: Tensor, strength: float = 1.0) -> Tensor:
    """Apply one operation to every image."""
    return module._apply(pixels, {name: strength}, always=True)


def draw_batch(count: int, width: int = 64, height: int = 64) -> Tensor:
    """Draw uint8 [count, 1, height, width], normal and pneumonia in turn."""
    images = [draw_xray(seed, bool(seed % 2), (width, height)) for seed in range(count)]
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])[:, None]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return draw_batch(32)


def differ(one: Tensor, other: Tensor) -> Tensor:
    """Return for each image whether it changed by more than rounding."""
    return (one - other).abs().amax((1, 2, 3)) > 0.01


def test_every_operation_has_a_strength_in_the_config_and_a_help_text():
    names = {one.name for one in fields(AugmentConfig)} - {"augment_strength"}
    assert names == {f"augment_{name}" for name in AUGMENTATIONS}
    assert all(one.metadata["help"] for one in fields(AugmentConfig))


@every_operation
def test_an_operation_alone_changes_some_images_and_keeps_shape_and_range(name, pixels):
    changed = augment(pixels, alone(name))
    assert changed.shape == pixels.shape and changed.dtype == torch.float32
    assert changed.min() >= 0 and changed.max() <= 255
    moved = differ(changed, pixels.float())
    assert moved.any() and not moved.all()


@every_operation
def test_an_operation_is_applied_to_its_share_of_the_images(name):
    pixels = draw_batch(8, 32, 32).repeat(50, 1, 1, 1)
    share = differ(augment(pixels, alone(name)), pixels.float()).float().mean().item()
    expected = CHANGES[name].share if name in CHANGES else module.MOVED_SHARE
    assert abs(share - expected) < 0.07


@every_operation
def test_images_of_a_batch_are_changed_differently(name):
    torch.manual_seed(0)
    alike = draw_batch(1, 160, 160).repeat(12, 1, 1, 1)
    changed = certainly(name, alike, 0.5 if name == "flip" else 1.0)
    # CLAHE's clip limit is a whole number of pixels.
    # Half of the frames and all histograms are those of another image, which is alike here.
    least = {"flip": 2, "clahe": 3, "frame": 5, "histogram": 1, "resolution": 1}.get(name, 10)
    assert len({one.numpy().tobytes() for one in changed}) >= least


@every_operation
def test_the_same_seed_gives_the_same_bits_and_another_seed_different_ones(name, pixels):
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(augment(pixels, alone(name)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@every_operation
def test_an_operation_of_strength_zero_is_not_called(name, pixels, monkeypatch):
    def refuse(*_):
        raise AssertionError(f"{name} was called")

    if name in CHANGES:
        monkeypatch.setitem(module.CHANGES, name, module.Change(refuse, 1.0))
    else:
        monkeypatch.setitem(module.MOVES, name, refuse)
    augment(pixels, AugmentConfig(**{f"augment_{name}": 0.0}))


@pytest.mark.parametrize("off", [{"augment_strength": 0.0}, OFF])
def test_strength_zero_keeps_the_bits_and_draws_no_random_number(pixels, off):
    before = torch.get_rng_state()
    assert torch.equal(augment(pixels, AugmentConfig(**off)), pixels.float())
    assert torch.equal(torch.get_rng_state(), before)


def test_restored_random_state_gives_the_same_bits(pixels):
    augment(pixels, AugmentConfig())
    saved = torch.get_rng_state()
    first = augment(pixels, AugmentConfig())
    torch.set_rng_state(saved)
    assert torch.equal(augment(pixels, AugmentConfig()), first)


def test_the_input_is_not_changed(pixels):
    given = pixels.float()
    augment(given, AugmentConfig())
    assert torch.equal(given, pixels.float())


@every_operation
@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("size", [(1, 28, 28), (3, 32, 32), (2, 45, 97), (2, 224, 160)])
def test_any_size_and_strength_stays_within_the_range(name, strength, size):
    count, height, width = size
    changed = certainly(name, draw_batch(count, width, height), strength)
    assert changed.shape == (count, 1, height, width)
    assert changed.isfinite().all() and changed.min() >= 0 and changed.max() <= 255


@every_operation
@pytest.mark.parametrize("gray", [0, 128, 255])
@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_images_of_one_gray_level_stay_finite(name, gray, strength):
    flat = torch.full((4, 1, 40, 40), gray, dtype=torch.uint8)
    changed = certainly(name, flat, strength)
    assert changed.isfinite().all() and changed.min() >= 0 and changed.max() <= 255


def test_images_are_mirrored_only_on_request():
    sided = torch.zeros(64, 1, 64, 64)
    sided[..., 8:56, 2:26] = 200  # on the left
    others = AugmentConfig(augment_frame=0, augment_marker=0)
    left, right = (augment(sided, others).split(32, -1)[side] for side in (0, 1))
    assert (left.mean((1, 2, 3)) > right.mean((1, 2, 3))).all()
    mirrored = augment(sided, alone("flip"))
    swapped = (mirrored == sided.flip(-1)).all(-1).all(-1).all(-1)
    assert ((mirrored == sided).all(-1).all(-1).all(-1) | swapped).all()
    assert 0.3 < swapped.float().mean() < 0.7


def place(pixels: Tensor) -> Tensor:
    """Return the centroid of each image's gray levels, as x and y: [N, 2]."""
    height, width = pixels.shape[-2:]
    light = pixels[:, 0] / pixels.sum((1, 2, 3))[:, None, None]
    x = (light.sum(1) * torch.arange(width)).sum(1)
    return torch.stack([x, (light.sum(2) * torch.arange(height)).sum(1)], 1)


def draw_dot(count: int, x: int, y: int) -> Tensor:
    """Draw a light dot on black images 120 pixels wide and 80 high."""
    dot = torch.zeros(count, 1, 80, 120)
    dot[..., y - 2 : y + 2, x - 2 : x + 2] = 255
    return dot


def test_a_translation_is_at_most_a_twentieth_of_the_side():
    centred = draw_dot(200, 60, 40)
    moved = (place(augment(centred, alone("translation"))) - place(centred)).abs()
    assert moved[:, 0].max() <= 0.05 * 120 + 0.1 and moved[:, 0].max() > 4
    assert moved[:, 1].max() <= 0.05 * 80 + 0.1 and moved[:, 1].max() > 3


def test_a_rotation_is_at_most_seven_degrees_and_keeps_distances():
    outer = draw_dot(200, 60, 10)
    centre = torch.tensor([59.5, 39.5])
    before = place(outer) - centre
    after = place(certainly("rotation", outer)) - centre
    angles = torch.rad2deg(torch.atan2(after[:, 0], -after[:, 1]))
    angles -= torch.rad2deg(torch.atan2(before[:, 0], -before[:, 1]))
    assert angles.abs().max() <= 7.1 and angles.min() < -5 and angles.max() > 5
    assert torch.allclose(after.norm(dim=1), before.norm(dim=1), atol=0.2)


def test_a_zoom_is_at_most_a_tenth():
    outer = draw_dot(200, 90, 20)
    centre = torch.tensor([59.5, 39.5])
    ratio = (place(certainly("zoom", outer)) - centre) / (place(outer) - centre)
    assert ratio.min() > 0.89 and ratio.max() < 1.11
    assert ratio.min() < 0.93 and ratio.max() > 1.07


def test_a_crop_shows_a_window_that_lies_within_the_image(monkeypatch):
    height, width = 80, 120
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp = torch.stack([x / width, y / height])[:, None].repeat(40, 1, 1, 1) * 255
    shown = certainly("crop", ramp).view(40, 2, height, width)
    inner = shown[..., 4:-4, 4:-4]
    assert inner.min() >= 0 and (inner[:, 0].amax((1, 2)) <= 255).all()
    # The share of each side that is shown, from the gray levels at the ends.
    wide = (shown[:, 0, 40, -5] - shown[:, 0, 40, 4]) / 255 / (width - 9) * width
    assert wide.min() > 0.5 and wide.max() < 1.09 and wide.std() > 0.05
    # The smallest window, as far left and up as it can lie, begins at the first row and column.
    monkeypatch.setattr(module, "_draw", lambda pixels, low, _: torch.full((len(pixels),), low))
    left, top = certainly("crop", ramp[:2])[:, 0, 10, 10] / 255
    assert left * width == pytest.approx(10 * 0.6 * math.exp(-0.075), abs=0.3)
    assert top * height == pytest.approx(10 * 0.6 * math.exp(0.075), abs=0.3)


def test_hidden_frames_keep_the_middle_and_change_the_border():
    pixels = draw_batch(40)
    changed = certainly("frame", pixels)
    middle = slice(round(0.33 * 64), round(0.67 * 64))
    kept = (changed[..., middle, middle] - pixels[..., middle, middle]).abs().amax((1, 2, 3))
    assert kept.max() < 0.01
    sides = [changed[..., :4, :], changed[..., -4:, :], changed[..., :4], changed[..., -4:]]
    owns = [pixels[..., :4, :], pixels[..., -4:, :], pixels[..., :4], pixels[..., -4:]]
    for side, own in zip(sides, owns, strict=True):
        assert 0.5 < ((side - own).abs().mean((1, 2, 3)) > 3).float().mean() < 1


def test_frames_come_from_other_images_of_the_batch_whatever_their_class():
    levels = torch.arange(10, 250, 4.0)[:, None, None, None].expand(-1, 1, 64, 64)
    corners = certainly("frame", levels)[:, 0, 0, 0]
    own = levels[:, 0, 0, 0]
    # Black, fields and blurred images are no gray level of another image.
    swapped = (corners.round() % 4 == 2) & ((corners - corners.round()).abs() < 1e-3)
    assert (swapped & ((corners - own).abs() > 1)).sum() > 8


def test_markers_are_bright_and_small():
    black = torch.zeros(60, 1, 128, 128)
    printed = certainly("marker", black)
    assert (printed.amax((1, 2, 3)) > 100).float().mean() > 0.8
    ink = (printed > 50).float().mean((1, 2, 3))
    assert 0 < ink.mean() < 0.03 and ink.max() < 0.1


def test_moved_images_are_filled_with_black():
    white = torch.full((50, 1, 64, 64), 255.0)
    for name in set(module.MOVES) - {"crop"}:  # which only enlarges
        moved = certainly(name, white)
        assert (moved.amin((1, 2, 3)) < 1).any()


def test_all_moves_interpolate_once(monkeypatch, pixels):
    sample, calls = torch.nn.functional.grid_sample, []
    monkeypatch.setattr(
        torch.nn.functional, "grid_sample", lambda *a, **k: calls.append(1) or sample(*a, **k)
    )
    augment(pixels, AugmentConfig(augment_marker=0))  # which prints by interpolation
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("operation", "name", "drawn", "level", "allowed"),
    [
        ("gamma", "gamma_dark", 1.4, 1.4, 0),
        ("rotation", "rotation", 5.0, 5.0, 0),
        ("noise", "noise", None, 0.03 * 255, 0),
        # The kernel ends a pixel further out, since the one of augmentation is for many widths.
        ("blur", "blur", 1.28, 2.0, 1),
        ("jpeg", "jpeg", 50.0, 50, 1.2),  # the file's gray levels are whole numbers
    ],
)
def test_augmentation_and_perturbation_of_the_same_strength_give_the_same_pixels(
    operation, name, drawn, level, allowed, monkeypatch, pixels
):
    side = {"rotation": -1}.get(operation, 1)  # the perturbation draws it: all to the left
    monkeypatch.setattr(module, "_draw", lambda rows, *_: torch.full((len(rows),), side * drawn))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.ones(len(pixels)))
    context = Context(pixels, torch.Generator().manual_seed(7))
    given = pixels.float()
    expected = PERTURBATIONS[name].function(given, level, context)
    torch.manual_seed(7)
    if operation in module.MOVES:
        changed = module._move(given, {operation: 1.0})
    else:
        changed = module.CHANGES[operation].function(given, 1.0)
    assert (changed - expected).abs().mean() <= allowed
    assert (changed - given).abs().mean() > 0.5


def test_clahe_raises_local_contrast_and_blur_lowers_it():
    pixels = draw_batch(6, 224, 224)

    def contrast(images: Tensor) -> Tensor:
        return images.float().unfold(2, 28, 28).unfold(3, 28, 28).std((-1, -2)).mean()

    assert contrast(certainly("clahe", pixels)) > 1.2 * contrast(pixels)
    assert contrast(certainly("blur", pixels)) < contrast(pixels)


def test_contrast_keeps_the_mean_and_brightness_the_differences():
    mild = (draw_batch(32).float() - 128) * 0.3 + 128  # far from black and white
    stretched = certainly("contrast", mild)
    assert torch.allclose(stretched.mean((1, 2, 3)), mild.mean((1, 2, 3)), atol=0.1)
    ratio = stretched.std((1, 2, 3)) / mild.std((1, 2, 3))
    assert 0.74 < ratio.min() < 0.85 and 1.15 < ratio.max() < 1.26
    lighter = certainly("brightness", mild) - mild
    assert lighter.std((1, 2, 3)).max() < 0.01
    assert 0.12 * 255 < lighter.abs().max() <= 0.15 * 255 + 0.01


def test_histograms_come_from_another_image_and_keep_the_order():
    own = draw_batch(40).float() * 0.5 + 60  # levels 60..187
    own[::2] *= 0.5  # 30..94
    changed = certainly("histogram", own)
    ranks = own.flatten(1).argsort(dim=1)
    assert (changed.flatten(1).gather(1, ranks).diff(dim=1) > -1e-3).all()
    # Each mean is somewhere between the own and that of the image before, differently far.
    means, before = changed.mean((1, 2, 3)), own.mean((1, 2, 3))
    parts = (means - before) / (before.roll(1) - before)
    assert parts.min() > -0.1 and parts.max() < 1.1
    assert parts.min() < 0.2 and parts.max() > 0.8
    # Equal gray levels stay equal: a black margin gets no pattern.
    first = own[0] == own[0].min()
    assert changed[0][first].unique().numel() == 1


def test_gamma_keeps_the_order_of_the_gray_levels():
    ramp = torch.arange(256.0).view(1, 1, 16, 16).repeat(20, 1, 1, 1)
    changed = certainly("gamma", ramp).flatten(1)
    assert (changed.diff(dim=1) > 0).all()
    assert (changed[:, 0] == 0).all() and torch.allclose(changed[:, -1], torch.tensor(255.0))


def test_noise_has_the_documented_strength():
    gray = torch.full((8, 1, 64, 64), 128.0)
    for strength in (0.5, 1.0, 2.0):
        assert abs(certainly("noise", gray, strength).std() - 0.03 * strength * 255) < 0.2


def test_erasing_sets_a_small_rectangle_to_black():
    white = torch.full((50, 1, 64, 64), 255.0)
    black = (certainly("erasing", white) < 1).float().mean((1, 2, 3))
    # Whole pixels, of which none lies outside of the image.
    assert 0.017 < black.min() and black.max() < 0.085


def test_a_pneumonia_stays_visible():
    well = torch.from_numpy(np.array(draw_xray(5, False, (224, 224))))[None, None]
    ill = torch.from_numpy(np.array(draw_xray(5, True, (224, 224))))[None, None]
    light = [
        augment(one.repeat(40, 1, 1, 1), AugmentConfig()).mean((1, 2, 3)).mean()
        for one in (well, ill)
    ]
    assert light[1] > light[0] + 0.5 * (ill.float().mean() - well.float().mean())


def test_the_preview_has_a_row_for_each_operation_and_one_for_all_together(pixels):
    figure = draw_preview(pixels[:2], AugmentConfig(augment_blur=2.0), columns=4)
    assert len(figure.axes) == (len(AUGMENTATIONS) - 2 + 1) * 4  # flip and histogram are off
    titles = [axes.get_ylabel() for axes in figure.axes[::4]]
    assert "blur\n2" in titles and titles[-1].startswith("all")
    assert not any(len(axes.get_xticks()) + len(axes.get_yticks()) for axes in figure.axes)
    for row, axes in enumerate(figure.axes[::4]):
        assert np.array_equal(axes.images[0].get_array(), pixels[row % 2, 0])
    for axes in figure.axes:
        assert axes.images[0].get_clim() == (0, 255)


def test_the_preview_does_not_change_the_random_state(pixels):
    before = torch.get_rng_state()
    draw_preview(pixels[:1], AugmentConfig(), columns=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "name", ["flip", "rotation", "crop", "zoom", "translation", "blur", "frame"]
)
def test_a_mask_is_moved_with_its_image_and_not_changed_otherwise(name):
    image = torch.zeros(24, 1, 64, 64)
    image[..., 10:30, 36:60] = 200
    mask = (image > 0) * 255.0
    torch.manual_seed(5)
    changed = augment(torch.cat([image, mask], 1), alone(name))
    torch.manual_seed(5)
    assert torch.equal(changed[:, :1], augment(image, alone(name)))
    moved = changed[:, 1:]
    if name in ("blur", "frame"):
        assert torch.equal(moved, mask)
    else:
        torch.testing.assert_close(moved / 255, changed[:, :1] / 200)
        assert differ(moved, mask).any()
