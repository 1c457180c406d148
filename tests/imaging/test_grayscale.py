import numpy as np
import pytest
from helpers import REAL_XRAYS, draw_mask, draw_xray
from PIL import Image
from xray_files import encode

from pneumonia_hf import read_xray
from pneumonia_hf.imaging.grayscale import has_two_levels
from pneumonia_hf.imaging.read import to_xray
from pneumonia_hf.reasons import Reason


@pytest.mark.parametrize("quality", [None, 95, 75, 20])
@pytest.mark.parametrize("side", [None, 256, 128])
@pytest.mark.parametrize("filter", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
def test_mask_has_two_levels_as_png_as_jpeg_and_smoothly_resized(quality, side, filter):
    for seed in range(5):
        mask = draw_mask(seed)
        mask = mask.resize((side, side), filter) if side else mask
        form = {"form": "JPEG", "quality": quality} if quality else {"form": "PNG"}
        image = read_xray(encode(mask.convert("RGB"), **form))
        assert has_two_levels(image) and Reason.MASK.value in to_xray(image).warnings


def test_mask_of_zeros_and_ones_has_two_levels():
    assert has_two_levels(draw_mask(0).point(lambda level: level // 255))


def test_xray_with_hard_contrast_or_a_wide_border_and_a_blank_image_are_no_masks():
    xray = draw_xray(1, ill=True, size=(200, 200))
    hard = np.clip((np.asarray(xray, float) - 95) * 2 + 128, 0, 255).astype(np.uint8)
    framed = Image.new("L", (500, 500))
    framed.paste(xray, (150, 150))
    for image in (xray, Image.fromarray(hard), framed, Image.new("L", (200, 200), 90)):
        assert not has_two_levels(image)


@pytest.mark.skipif(not REAL_XRAYS.exists(), reason="the real X-rays are not here")
def test_real_xrays_are_no_masks():
    files = [*(REAL_XRAYS / "rsna_adult" / "NORMAL").iterdir()]
    files += sorted((REAL_XRAYS / "train" / "PNEUMONIA").iterdir())[:100]
    assert len(files) > 200 and not any(has_two_levels(read_xray(file)) for file in files)
