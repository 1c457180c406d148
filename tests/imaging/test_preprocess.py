import numpy as np
import pytest
import torch
from helpers import draw_xray
from PIL import Image

from pneumonia_hf.imaging.preprocess import make_processor, normalise, resize, to_pixel_values

SIZES = [(80, 64), (224, 224), (301, 517), (1200, 900)]


@pytest.fixture(scope="module")
def processor():
    return make_processor(96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_pixel_values_are_the_processors_bit_for_bit(processor):
    images = [draw_xray(seed, ill=True, size=size) for seed, size in enumerate(SIZES)]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    pixels = resize(images, processor)
    assert (pixels.shape, pixels.dtype) == ((4, 1, 96, 96), torch.uint8)
    assert torch.equal(normalise(pixels, processor), expected)
    assert torch.equal(to_pixel_values(images, processor), expected)
    coloured = [images[0].convert("RGB"), images[1]]
    assert torch.equal(to_pixel_values(coloured, processor), expected[:2])


def test_a_processor_that_crops_is_followed(processor):
    from transformers import ConvNextImageProcessor

    cropping = ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.8)
    images = [draw_xray(seed, ill=True, size=(150, 120)) for seed in range(2)]
    expected = cropping(images=[one.convert("RGB") for one in images], return_tensors="pt")
    assert torch.equal(to_pixel_values(images, cropping), expected["pixel_values"])


def test_image_has_the_same_pixels_alone_and_in_a_batch(processor):
    images = [draw_xray(seed, ill=False, size=size) for seed, size in enumerate(SIZES * 2)]
    together = to_pixel_values(images, processor)
    for row, image in enumerate(images):
        assert torch.equal(together[row], to_pixel_values([image], processor)[0])


def test_nothing_is_cropped(processor):
    image = draw_xray(0, ill=False, size=(300, 200))
    framed = np.asarray(image).copy()
    framed[:6], framed[-6:], framed[:, :6], framed[:, -6:] = 255, 255, 255, 255
    pixels = resize([Image.fromarray(framed)], processor)[0, 0]
    for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert border.float().mean() > 230


def test_saved_processor_is_loaded_unchanged(processor, tmp_path):
    from transformers import AutoImageProcessor

    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    images = [draw_xray(1, ill=True, size=(333, 222))]
    assert torch.equal(to_pixel_values(images, loaded), to_pixel_values(images, processor))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_equals_the_processors_own_step_bit_for_bit(processor, dtype):
    pixels = torch.randint(0, 256, (5, 1, 96, 96), dtype=torch.uint8).to(dtype)
    rgb = pixels.expand(-1, 3, -1, -1)
    expected = processor(images=rgb, do_resize=False, return_tensors="pt")["pixel_values"]
    before = pixels.clone()
    result = normalise(pixels, processor)
    assert torch.equal(result, expected) and result.is_contiguous()
    assert torch.equal(pixels, before)
