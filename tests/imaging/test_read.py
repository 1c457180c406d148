import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, draw_xray
from PIL import Image
from xray_files import RAMP, encode, make_dicom

from pneumonia_hf import XrayError, open_xray, read_xray
from pneumonia_hf.imaging.read import is_image_file, to_xray


def encode_png_16(*channels: np.ndarray) -> bytes:
    """Write a PNG of one to four channels of 16 bits, which Pillow cannot."""
    colour_type = (0, 4, 2, 6)[len(channels) - 1]
    values = np.dstack(channels).astype(">u2")
    height, width = values.shape[:2]
    rows = np.zeros((height, 1 + width * 2 * len(channels)), np.uint8)
    rows[:, 1:] = values.reshape(height, -1).view(np.uint8)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0),
        b"IDAT": zlib.compress(rows.tobytes(), 1),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


GRAY = draw_xray(0, ill=True)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_lossless_gray_images_come_back_unchanged(form):
    image = read_xray(encode(GRAY, form))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), np.asarray(GRAY))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1"])
def test_other_modes_become_gray(mode):
    found = open_xray(encode(GRAY.convert(mode), "PNG"))
    assert (found.image.mode, found.image.size) == ("L", GRAY.size)
    assert found.coloured is False


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_images_stay_close(form):
    image = read_xray(encode(GRAY, form, quality=95))
    assert np.abs(np.asarray(image, float) - np.asarray(GRAY, float)).mean() < 4


def test_16_bit_png_keeps_its_gray_levels():
    ramp = np.tile(np.linspace(300, 4000, 200), (50, 1)).astype(np.uint16)
    gray = np.asarray(read_xray(encode(Image.fromarray(ramp), "PNG")))
    assert gray.min() == 0 and gray.max() == 255
    assert len(np.unique(gray)) > 150
    assert np.all(np.diff(gray[0].astype(int)) >= 0)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colours_and_alpha_are_read_like_16_bit_gray(channels):
    ramp = np.tile(np.linspace(300, 4000, 400), (50, 1)).astype(np.uint16)
    opaque = [] if channels == 3 else [np.full_like(ramp, 65535)]
    found = open_xray(encode_png_16(*[ramp] * (3 if channels > 2 else 1), *opaque))
    gray = read_xray(encode_png_16(ramp))
    assert found.coloured is False
    assert np.abs(np.asarray(found.image, int) - np.asarray(gray, int)).max() <= 1


def encode_tiff(pixels: np.ndarray, photometric: int) -> bytes:
    """Write an uncompressed TIFF, whose photometric interpretation Pillow would not keep."""
    from PIL import TiffImagePlugin

    height, width, samples = np.atleast_3d(pixels).shape
    tags = {256: width, 257: height, 258: (8 * pixels.itemsize,) * samples, 259: 1}
    tags |= {262: photometric, 273: 0, 277: samples, 278: height, 279: pixels.nbytes}
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in (tags | {339: 3 if pixels.dtype.kind == "f" else 1}).items():
        directory[tag] = value
    return b"II*\0\x08\0\0\0" + directory.tobytes(8) + pixels.tobytes()


def test_16_bit_colours_of_a_tiff_keep_their_gray_levels():
    ramp = np.tile(np.linspace(300, 4000, 400), (50, 1)).astype("<u2")
    data = encode_tiff(np.dstack([ramp] * 3), photometric=2)
    expected = np.asarray(read_xray(encode_png_16(ramp)), int)
    assert np.abs(np.asarray(read_xray(data), int) - expected).max() <= 1


@pytest.mark.parametrize("type", ["u1", "<u2", "<f4"])
def test_tiff_whose_lowest_value_is_white_is_inverted(type):
    values = (np.asarray(GRAY) * (257.0 if type == "<u2" else 1)).astype(type)
    most = np.iinfo(type).max if type != "<f4" else 255
    data = {0: encode_tiff((most - values).astype(type), 0), 1: encode_tiff(values, 1)}
    for opened in (lambda one: one, lambda one: Image.open(io.BytesIO(one))):
        white, black = (np.asarray(to_xray(opened(one)).image, int) for one in data.values())
        assert np.abs(white - black).max() <= 1


@pytest.mark.parametrize("type", ["int32", "float32"])
def test_32_bit_tiff_is_scaled_by_its_range(type):
    ramp = np.tile(np.linspace(-70000, 90000, 256), (50, 1)).astype(type)
    gray = np.asarray(read_xray(encode(Image.fromarray(ramp), "TIFF")), int)
    assert np.abs(gray[0] - np.arange(256)).max() <= 1


def test_nan_in_a_tiff_is_black():
    ramp = np.tile(np.linspace(1, 2, 256), (50, 1)).astype("float32")
    ramp[10:20, 100:110] = np.nan
    gray = np.asarray(read_xray(encode(Image.fromarray(ramp), "TIFF")))
    assert gray[15, 105] == 0 and 90 < gray[5, 105] < 120


def test_transparent_pixels_are_black():
    ramp = Image.linear_gradient("L")
    clear = Image.merge("LA", [ramp, Image.new("L", ramp.size, 0)])
    assert np.asarray(read_xray(encode(clear, "PNG"))).max() == 0


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(form, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(GRAY, form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(read_xray(data)), np.asarray(expected))
    opened = Image.open(io.BytesIO(data))
    before = opened.size if form != "TIFF" else expected.size  # Pillow turns those by itself
    assert np.array_equal(np.asarray(to_xray(opened).image), np.asarray(expected))
    assert opened.size == before  # the caller's image is left as it was


def test_png_with_a_dicom_extension_is_read(tmp_path):
    (tmp_path / "scan.dcm").write_bytes(encode(GRAY, "PNG"))
    assert np.array_equal(read_xray(tmp_path / "scan.dcm"), GRAY)


def test_tags_that_share_their_data_are_refused():
    tags = {256: 10, 257: 10, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 10, 279: 100}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    entries += [struct.pack("<HHII", 30000 + i, 7, 10**5, 8) for i in range(3000)]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    tiff = b"II*\0" + struct.pack("<I", 8 + 10**5) + bytes(10**5) + directory
    exif = b"Exif\0\0" + tiff
    for data in (tiff, encode(GRAY, "PNG", exif=exif), encode(GRAY, "WEBP", exif=exif)):
        with pytest.raises(XrayError, match="tags are longer than the file"):
            read_xray(data)


def test_progressive_jpeg_of_a_thousand_scans_is_refused():
    data = encode(GRAY, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert read_xray(data).size == GRAY.size
    with pytest.raises(XrayError, match="more than 100 scans"):
        read_xray(data[:-2] + last * 1000 + b"\xff\xd9")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just some text", "not an image"),
        (b"%PDF-1.7 not an image", "not an image"),
        (encode(GRAY, "JPEG")[:300], "damaged"),
        (encode(GRAY, "PNG")[:200], "damaged"),
        (b"\0" * 128 + b"DICM" + b"rubbish", "DICOM"),
        (make_dicom(RAMP)[:900], "DICOM"),
    ],
)
def test_invalid_file_is_refused_in_one_sentence(data, reason):
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
    frames = encode(GRAY, "TIFF", save_all=True, append_images=[GRAY, GRAY])
    with pytest.raises(XrayError, match="3 frames"):
        read_xray(frames)


def test_first_image_of_a_phone_s_jpeg_is_read():
    both = encode(GRAY, "MPO", save_all=True, append_images=[GRAY.rotate(180)], quality=95)
    found = open_xray(both)
    assert np.array_equal(found.image, read_xray(encode(GRAY, "JPEG", quality=95)))
    assert found.format == "MPO"


@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "TIFF", "BMP", "WEBP", "DICOM"])
@pytest.mark.parametrize("name", ["scan.jfif", "scan.xyz", "scan", "1.2.840.113"])
def test_file_under_any_name_is_an_image_by_its_first_bytes(tmp_path, form, name):
    data = make_dicom(RAMP) if form == "DICOM" else encode(GRAY, form)
    (tmp_path / name).write_bytes(data)
    assert is_image_file(tmp_path / name)


def test_known_name_of_another_kind_of_file_is_never_opened(tmp_path, monkeypatch):
    for name, data in (("notes.txt", encode(GRAY, "PNG")), (".scan", encode(GRAY, "PNG"))):
        (tmp_path / name).write_bytes(data)
    for name, data in (("notes", b"text"), ("BMI", b"BMI of the patients"), ("scan.heic", b"")):
        (tmp_path / name).write_bytes(data)
    assert not any(map(is_image_file, tmp_path.iterdir()))
    monkeypatch.setattr(Path, "open", None)
    assert not is_image_file(tmp_path / "notes.txt") and not is_image_file(tmp_path / ".scan")


def test_missing_file_and_folder_have_their_own_errors(tmp_path):
    with pytest.raises(XrayError, match="does not exist"):
        read_xray(tmp_path / "nothing.png")
    with pytest.raises(XrayError, match="folder"):
        read_xray(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipe_and_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(XrayError, match="not a regular file"):
            read_xray(path)


def test_file_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2_000_000_000)  # a sparse file
    with pytest.raises(XrayError, match=r"huge.png has 2000 MB, more than the 400 MB allowed"):
        read_xray(tmp_path / "huge.png")


def test_error_messages_use_the_given_name(tmp_path):
    path = tmp_path / "a temporary name.png"
    path.write_bytes(b"rubbish")
    with pytest.raises(XrayError, match=r"^a temporary name\.png is not an image"):
        read_xray(path)
    with pytest.raises(XrayError, match=r"^given\.png is not an image"):
        read_xray(path, name="given.png")
    with pytest.raises(XrayError, match=r"^the image is not an image"):
        read_xray(b"rubbish")
    with pytest.raises(XrayError) as caught:
        read_xray(b"rubbish", name="a\nname" * 100)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


WATCH = """
import sys
sys.path[:0] = sys.argv[1:3]
from fuzz_xray import measure_memory
from pneumonia_hf import read_xray
read_xray(sys.argv[3])
before = measure_memory(reset=True)
read_xray(sys.argv[4])
print(measure_memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured on Linux")
@pytest.mark.parametrize("form", ["png", "dcm"])
def test_16_bit_xray_of_60_megapixels_takes_less_than_500_mb(tmp_path, form):
    values = np.zeros((7690, 7800), np.uint16)
    values[::7] = 4000
    small = values[:100, :100]
    for name, pixels in (("small", small), ("large", values)):
        data = (
            encode(Image.fromarray(pixels), "PNG", compress_level=1)
            if form == "png"
            else make_dicom(pixels)
        )
        (tmp_path / f"{name}.{form}").write_bytes(data)
    paths = [str(tmp_path / f"{name}.{form}") for name in ("small", "large")]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(ROOT), str(ROOT / "tests"), *paths],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert 50 < float(done.stdout) < 500
