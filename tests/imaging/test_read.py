import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzz_xray import encode_dicoms, find_dicom, transcode
from helpers import ROOT, draw_xray
from PIL import Image
from xray_files import RAMP, encode, make_dicom

from pneumonia_hf import XrayError, read_xray
from pneumonia_hf.imaging import read
from pneumonia_hf.imaging.input_checks import input_warnings
from pneumonia_hf.imaging.read import is_image_file


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
    image = read_xray(encode(GRAY.convert(mode), "PNG"))
    assert (image.mode, image.size) == ("L", GRAY.size)
    assert image.info["coloured"] is False


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
    image = read_xray(encode_png_16(*[ramp] * (3 if channels > 2 else 1), *opaque))
    gray = read_xray(encode_png_16(ramp))
    assert image.info["coloured"] is False
    assert np.abs(np.asarray(image, int) - np.asarray(gray, int)).max() <= 1


def test_16_bit_colours_of_a_tiff_keep_their_gray_levels():
    from PIL import TiffImagePlugin

    ramp = np.tile(np.linspace(300, 4000, 400), (50, 1)).astype("<u2")
    tags = {256: 400, 257: 50, 258: (16, 16, 16), 259: 1, 262: 2, 273: 0, 277: 3, 278: 50}
    pixels = np.dstack([ramp] * 3).tobytes()
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in (tags | {279: len(pixels)}).items():
        directory[tag] = value
    data = b"II*\0\x08\0\0\0" + directory.tobytes(8) + pixels
    expected = np.asarray(read_xray(encode_png_16(ramp)), int)
    assert np.abs(np.asarray(read_xray(data), int) - expected).max() <= 1


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


def test_info_gives_format_mode_modality_and_colour():
    assert read_xray(encode(GRAY.convert("RGB"), "PNG")).info["mode"] == "RGB"
    info = read_xray(encode(GRAY, "WEBP")).info
    assert (info["format"], info["coloured"]) == ("WEBP", False)
    info = read_xray(make_dicom(RAMP)).info
    assert info["mode"] == "DICOM 12 bit MONOCHROME2"
    assert (info["format"], info["modality"]) == ("DICOM", "DX")


def test_colour_is_detected():
    photograph = Image.fromarray(np.full((40, 40, 3), (200, 40, 40), np.uint8))
    assert read_xray(encode(photograph, "PNG")).info["coloured"] is True


def test_dicom_is_scaled_by_its_range():
    gray = np.asarray(read_xray(make_dicom(RAMP)))
    assert gray.shape == RAMP.shape
    assert np.abs(gray[0] - np.arange(256.0)).max() <= 2


def test_dicom_monochrome1_is_inverted():
    plain = np.asarray(read_xray(make_dicom(RAMP)), int)
    inverted = np.asarray(read_xray(make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1")), int)
    assert np.array_equal(inverted, 255 - plain)


def test_dicom_window_is_applied():
    gray = np.asarray(read_xray(make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024)))
    assert gray[0, 90] == 0 and gray[0, 165] == 255
    assert 120 < gray[0, 128] < 136


def test_dicom_with_an_empty_window_is_read():
    gray = np.asarray(read_xray(make_dicom(RAMP, WindowCenter=None, WindowWidth=None)))
    assert np.abs(gray[0] - np.arange(256.0)).max() <= 2


def test_dicom_window_without_contrast_is_ignored():
    faint = np.asarray(
        read_xray(make_dicom(RAMP / 40 + 2000, WindowCenter=2048, WindowWidth=65536))
    )
    assert faint.max() - faint.min() == 255


@pytest.mark.parametrize("bits", range(10, 17))
@pytest.mark.parametrize("signed", [0, 1])
def test_dicom_of_10_to_16_bits_is_scaled_by_its_range(bits, signed):
    values = np.tile(np.linspace(0, 2**bits - 1, 256), (64, 1)) - signed * 2 ** (bits - 1)
    data = make_dicom(values, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed)
    gray = np.asarray(read_xray(data), int)
    assert np.abs(gray[0] - np.arange(256)).max() <= 2


def test_bits_above_those_stored_are_ignored():
    garbage = RAMP.astype(np.uint16) | (np.arange(256, dtype=np.uint16) % 16 << 12)
    assert np.array_equal(read_xray(make_dicom(garbage)), read_xray(make_dicom(RAMP)))


def test_window_applies_to_rescaled_values():
    plain = read_xray(make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024))
    moved = make_dicom(
        RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=2048
    )
    assert np.abs(np.asarray(plain, int) - np.asarray(read_xray(moved), int)).max() <= 1


def test_sigmoid_window_is_applied():
    image = read_xray(
        make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024, VOILUTFunction="SIGMOID")
    )
    expected = 255 / (1 + np.exp(-4 * (RAMP[0].astype(int) - 2048) / 1024))
    assert np.abs(np.asarray(image)[0] - expected).max() <= 1


def test_first_of_several_windows_is_applied():
    one = read_xray(make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024))
    several = read_xray(make_dicom(RAMP, WindowCenter=[2048, 99], WindowWidth=[1024, 50]))
    assert np.array_equal(one, several)


@pytest.mark.parametrize("window", [{"WindowWidth": 0}, {"VOILUTFunction": "ODD"}])
def test_invalid_window_is_ignored(window):
    data = make_dicom(RAMP, **({"WindowCenter": 2048, "WindowWidth": 1024} | window))
    assert np.array_equal(read_xray(data), read_xray(make_dicom(RAMP)))


def make_table(entries: np.ndarray, bits: int, first: int = 0):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return Sequence([item])


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_voi_lut_is_applied_and_scaled_by_its_own_bits(bits):
    table = np.round(np.sqrt(np.arange(4096) / 4095) * (2**bits - 1))
    gray = np.asarray(read_xray(make_dicom(RAMP, VOILUTSequence=make_table(table, bits))))
    expected = np.sqrt(RAMP[0].astype(int) / 4095) * 255
    assert np.abs(gray[0] - expected).max() <= 1


def test_modality_lut_is_applied_before_the_window():
    table = np.arange(4095, -1, -1)
    data = make_dicom(
        RAMP, ModalityLUTSequence=make_table(table, 12), WindowCenter=2048, WindowWidth=1024
    )
    plain = np.asarray(read_xray(make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024)), int)
    assert np.abs(np.asarray(read_xray(data), int) - plain[:, ::-1]).max() <= 1


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_change_the_range(kind):
    values = np.tile(np.linspace(1000, 2000, 256), (64, 1))
    plain = np.asarray(read_xray(make_dicom(values, PhotometricInterpretation=kind)), int)
    values[:, :40], values[:, 40:50] = 4095, 4000
    data = make_dicom(
        values,
        PhotometricInterpretation=kind,
        PixelPaddingValue=4095,
        PixelPaddingRangeLimit=3900,
    )
    gray = np.asarray(read_xray(data), int)
    assert gray[:, :50].max() == 0
    assert gray[:, 50:].min() <= 1 and gray[:, 50:].max() >= 254
    assert np.abs(gray[:, 100:] - plain[:, 100:]).max() < 60


def test_8_bit_and_palette_and_colour_dicoms_become_gray():
    narrow = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    gray = np.asarray(read_xray(make_dicom(ramp, PixelData=ramp.tobytes(), **narrow)), int)
    assert np.abs(gray[0] - np.arange(256)).max() <= 1
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{colour}PaletteColorLookupTableData"] = (
            (np.arange(256) * 257).astype("<u2").tobytes()
        )
    image = read_xray(make_dicom(ramp, PixelData=ramp.tobytes(), **narrow, **palette))
    assert np.array_equal(np.asarray(image)[0], np.arange(256))
    assert image.info["coloured"] is False
    for kind, channels in (("RGB", [ramp] * 3), ("YBR_FULL", [ramp, ramp * 0 + 128] * 2)):
        data = np.dstack(channels[:2] + channels[1:2] if kind != "RGB" else channels).tobytes()
        colours = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PixelData": data}
        image = read_xray(make_dicom(ramp, PhotometricInterpretation=kind, **narrow, **colours))
        assert np.abs(np.asarray(image, int)[0] - np.arange(256)).max() <= 1
        assert image.info["coloured"] is False


def test_palette_of_32_bits_is_refused():
    wide = {"BitsAllocated": 32, "PhotometricInterpretation": "PALETTE COLOR"}
    with pytest.raises(XrayError, match="its type of palette is not supported"):
        read_xray(make_dicom(RAMP, PixelData=RAMP.astype("<u4").tobytes(), **wide))


def test_real_xray_has_dark_lungs_white_bones_and_contrast():
    dataset = np.asarray(read_xray(find_dicom("RG1_UNCR.dcm")))
    assert dataset.shape == (1955, 1841)
    lungs, spine = dataset[450:700, 400:600], dataset[600:900, 850:950]
    assert np.median(spine) - np.median(lungs) > 50
    assert np.ptp(np.percentile(dataset, [1, 99])) > 128
    lossy = np.asarray(read_xray(find_dicom("RG1_J2KI.dcm")), int)
    assert np.abs(lossy - dataset).mean() < 2


@pytest.fixture(scope="module")
def real_xrays() -> dict[str, bytes]:
    return encode_dicoms(8)


@pytest.mark.parametrize(
    "kind",
    [
        "big endian",
        "deflated",
        "implicit",
        "jpeg 2000",
        "jpeg lossless",
        "jpeg process 14",
        "jpeg-ls",
        "rle",
    ],
)
def test_losslessly_compressed_xray_equals_the_uncompressed_one(real_xrays, kind):
    plain = np.asarray(read_xray(real_xrays["dicom"]))
    assert np.array_equal(np.asarray(read_xray(real_xrays[f"dicom {kind}"])), plain)


def test_lossy_jpeg_in_dicom_stays_close(real_xrays):
    plain = np.asarray(read_xray(real_xrays["dicom"]), int)
    assert np.abs(np.asarray(read_xray(real_xrays["dicom jpeg"]), int) - plain).mean() < 4


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless"])
def test_signed_xray_survives_lossless_compression(syntax):
    import gdcm

    data = make_dicom(RAMP - 2048, PixelRepresentation=1, WindowCenter=0, WindowWidth=1024)
    packed = transcode(data, getattr(gdcm.TransferSyntax, syntax))
    assert np.array_equal(read_xray(packed), read_xray(data))


def test_forged_size_in_a_compressed_frame_never_reaches_the_decoder(real_xrays):
    data = real_xrays["dicom jpeg lossless"]
    start = data.index(b"\xff\xc3\0\x0b")
    for offset, forged in ((4, b"\xff"), (5, b"\xff\xff"), (7, b"\xff\xff"), (9, b"\x03")):
        bad = data[: start + offset] + forged + data[start + offset + len(forged) :]
        with pytest.raises(XrayError, match="compressed image"):
            read_xray(bad)


def rename_syntax(data: bytes, syntax: str) -> bytes:
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_error_names_an_unsupported_transfer_syntax(real_xrays):
    with pytest.raises(XrayError, match="MPEG2 Main Profile / Main Level, which cannot be decoded"):
        read_xray(rename_syntax(real_xrays["dicom jpeg"], "1.2.840.10008.1.2.4.100"))


@pytest.mark.parametrize(
    ("modality", "words"),
    [
        ("SR", r"modality SR \(structured report\)"),
        ("RTPLAN", "radiotherapy plan"),
        ("ECG", "electrocardiography"),
        ("ZZ", r"modality ZZ \(Computed Radiography Image Storage\)"),
    ],
)
def test_error_names_the_modality_of_a_dicom_without_an_image(modality, words):
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(make_dicom(RAMP, Modality=modality)))
    del dataset.PixelData
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(XrayError, match=f"report.dcm is .*{words}.*, which holds no image"):
        read_xray(buffer.getvalue(), name="report.dcm")


def test_segmentation_with_pixels_is_refused():
    with pytest.raises(XrayError, match=r"modality SEG \(segmentation\)"):
        read_xray(make_dicom(RAMP, Modality="SEG"))


def test_input_checks_warn_of_other_modalities():
    slice_of_ct = read_xray(make_dicom(RAMP, Modality="CT"))
    assert input_warnings(slice_of_ct)[0] == (
        "The DICOM file says that it is CT (computed tomography), not a chest radiograph."
    )
    for modality in ("DX", "CR", "OT", ""):
        found = input_warnings(read_xray(make_dicom(RAMP, Modality=modality)))
        assert not any("DICOM" in warning for warning in found)


def test_data_set_without_a_header_is_read_if_it_has_a_dicom_extension(tmp_path):
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(make_dicom(RAMP)))
    for implicit in (True, False):
        path = tmp_path / "bare.dcm"
        pydicom.dcmwrite(
            path,
            pydicom.Dataset(dataset),
            implicit_vr=implicit,
            little_endian=True,
            enforce_file_format=False,
        )
        assert path.read_bytes()[128:132] != b"DICM"
        assert np.array_equal(read_xray(path), read_xray(make_dicom(RAMP)))
        with pytest.raises(XrayError, match="not an image"):
            read_xray(path.read_bytes())


def test_png_with_a_dicom_extension_is_read(tmp_path):
    (tmp_path / "scan.dcm").write_bytes(encode(GRAY, "PNG"))
    assert np.array_equal(read_xray(tmp_path / "scan.dcm"), GRAY)


def test_sequence_of_a_million_empty_items_is_refused():
    sequence = b"\x28\0\x10\x30SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0\0\0\0\0" * 10**6
    data = make_dicom(RAMP)
    start = data.index(b"\xe0\x7f\x10\0")
    with pytest.raises(XrayError, match="more elements than any X-ray"):
        read_xray(data[:start] + sequence + data[start:])


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


def test_dicom_with_several_frames_is_refused():
    with pytest.raises(XrayError, match="7 frames"):
        read_xray(make_dicom(RAMP, NumberOfFrames=7))


def test_limit_on_pixels_applies_to_dicom_before_decoding(monkeypatch):
    monkeypatch.setattr(read, "MAX_PIXELS", 10_000)
    with pytest.raises(XrayError, match="256 x 64"):
        read_xray(make_dicom(RAMP))
    monkeypatch.undo()
    with pytest.raises(XrayError, match="60000 x 60000, more than the 64 million pixels"):
        read_xray(make_dicom(RAMP, Rows=60000, Columns=60000))


def test_deflated_and_run_length_bombs_are_not_unpacked():
    from pydicom.encaps import encapsulate

    head = make_dicom(RAMP).replace(
        b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99"
    )
    length = struct.unpack_from("<I", head, 140)[0] + 2
    packer = zlib.compressobj(wbits=-15)
    bomb = b"".join(packer.compress(bytes(10**7)) for _ in range(25)) + packer.flush()
    data = head[:140] + struct.pack("<I", length) + head[144 : 144 + length] + bomb
    with pytest.raises(XrayError, match="unpacks to more than 150 MB"):
        read_xray(data)
    frame = struct.pack("<16L", 2, 64, 64, *[0] * 13) + b"\x81\x07" * 50_000
    runs = rename_syntax(make_dicom(RAMP), "1.2.840.10008.1.2.1")
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(runs))
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.5"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(XrayError, match="truncated"):
        read_xray(buffer.getvalue())


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
    image = read_xray(both)
    assert np.array_equal(image, read_xray(encode(GRAY, "JPEG", quality=95)))
    assert image.info["format"] == "MPO"


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
