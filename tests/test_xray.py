import io

import numpy as np
import pytest
from conftest import draw_xray
from PIL import Image

from pneumonia_hf import XrayError, read_xray


def encode(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


GREY = draw_xray(0, ill=True)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_lossless_grey_pictures_come_back_unchanged(form):
    picture = read_xray(encode(GREY, form))
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), np.asarray(GREY))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1"])
def test_other_modes_become_grey(mode):
    picture = read_xray(encode(GREY.convert(mode), "PNG"))
    assert (picture.mode, picture.size) == ("L", GREY.size)
    assert picture.info["coloured"] is False


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_pictures_stay_close(form):
    picture = read_xray(encode(GREY, form, quality=95))
    assert np.abs(np.asarray(picture, float) - np.asarray(GREY, float)).mean() < 4


def test_16_bit_png_keeps_its_shades_instead_of_turning_white():
    ramp = np.tile(np.linspace(300, 4000, 200), (50, 1)).astype(np.uint16)
    grey = np.asarray(read_xray(encode(Image.fromarray(ramp), "PNG")))
    assert grey.min() == 0 and grey.max() == 255
    assert len(np.unique(grey)) > 150
    assert np.all(np.diff(grey[0].astype(int)) >= 0)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert read_xray(encode(GREY, "JPEG", exif=exif)).size == GREY.size[::-1]


def test_colour_is_noticed():
    photograph = Image.fromarray(np.full((40, 40, 3), (200, 40, 40), np.uint8))
    assert read_xray(encode(photograph, "PNG")).info["coloured"] is True


def make_dicom(values: np.ndarray, **elements) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    film.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID
    film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID
    film.Modality = "DX"
    film.Rows, film.Columns = values.shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.PixelData = values.astype("<u2").tobytes()
    for name, value in elements.items():
        setattr(film, name, value)
    buffer = io.BytesIO()
    film.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


RAMP = np.tile(np.linspace(0, 4095, 256), (64, 1))


def test_dicom_is_read_over_its_range():
    grey = np.asarray(read_xray(make_dicom(RAMP)))
    assert grey.shape == RAMP.shape
    assert np.abs(grey[0] - np.arange(256.0)).max() <= 2


def test_dicom_monochrome1_is_inverted():
    plain = np.asarray(read_xray(make_dicom(RAMP)), int)
    inverted = np.asarray(read_xray(make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1")), int)
    assert np.array_equal(inverted, 255 - plain)


def test_dicom_window_is_applied():
    grey = np.asarray(read_xray(make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024)))
    assert grey[0, 90] == 0 and grey[0, 165] == 255
    assert 120 < grey[0, 128] < 136


def test_dicom_with_an_empty_window_is_read():
    grey = np.asarray(read_xray(make_dicom(RAMP, WindowCenter=None, WindowWidth=None)))
    assert np.abs(grey[0] - np.arange(256.0)).max() <= 2


def test_dicom_window_that_shows_nothing_is_passed_over():
    faint = np.asarray(
        read_xray(make_dicom(RAMP / 40 + 2000, WindowCenter=2048, WindowWidth=65536))
    )
    assert faint.max() - faint.min() == 255


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just some text", "not a picture"),
        (b"%PDF-1.7 not a picture", "not a picture"),
        (encode(GREY, "JPEG")[:300], "damaged"),
        (encode(GREY, "PNG")[:200], "damaged"),
        (b"\0" * 128 + b"DICM" + b"rubbish", "DICOM"),
        (make_dicom(RAMP)[:900], "DICOM"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(data, reason):
    with pytest.raises(XrayError, match=reason) as caught:
        read_xray(data)
    assert "\n" not in str(caught.value)


def test_decompression_bomb_is_refused_before_it_is_decoded():
    for side in (9_000, 15_000):
        bomb = encode(Image.new("1", (side, side)), "PNG")
        assert len(bomb) < 100_000
        with pytest.raises(XrayError, match="more than the 64 million pixels"):
            read_xray(bomb)


def test_animation_is_refused():
    frames = encode(GREY, "TIFF", save_all=True, append_images=[GREY, GREY])
    with pytest.raises(XrayError, match="3 frames"):
        read_xray(frames)


def test_missing_file_and_folder_are_told_apart(tmp_path):
    with pytest.raises(XrayError, match="does not exist"):
        read_xray(tmp_path / "nothing.png")
    with pytest.raises(XrayError, match="folder"):
        read_xray(tmp_path)
