"""How the values of a DICOM file are shown, and what is said when it cannot be followed."""

import numpy as np
import pytest
from helpers import draw_xray
from PIL import Image
from xray_files import RAMP, make_dicom

from pneumonia_hf import XrayError, open_xray, read_xray

CHEST = np.asarray(draw_xray(0, ill=True, size=(200, 200))).astype(np.uint16) * 16


def find_warnings(values: np.ndarray = CHEST, **elements) -> tuple[str, ...]:
    return open_xray(make_dicom(values, **elements)).warnings


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


@pytest.mark.parametrize("high", [13, 15])
@pytest.mark.parametrize("signed", [0, 1])
def test_values_may_begin_at_a_higher_bit(high, signed):
    shift = high - 11
    values = RAMP.astype(np.int64) - signed * 2048
    garbage = np.arange(256) % (1 << shift) | (np.arange(256) % 2 << (high + 1))
    data = make_dicom((values << shift) + garbage, HighBit=high, PixelRepresentation=signed)
    expected = make_dicom(values, PixelRepresentation=signed)
    assert np.array_equal(read_xray(data), read_xray(expected))


@pytest.mark.parametrize("high", [0, 15, 16, 65535])
def test_wrong_high_bit_is_ignored_where_the_values_fit_below_it(high):
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64))
    window = {"WindowCenter": 1000, "WindowWidth": 600}
    found, expected = make_dicom(noise, HighBit=high, **window), make_dicom(noise, **window)
    assert np.array_equal(read_xray(found), read_xray(expected))
    if high > 15:
        garbage = make_dicom(noise | (noise << 12), HighBit=high, **window)
        assert np.array_equal(read_xray(garbage), read_xray(expected))


def test_window_applies_to_rescaled_values():
    plain = read_xray(make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024))
    moved = make_dicom(
        RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=2048
    )
    assert np.abs(np.asarray(plain, int) - np.asarray(read_xray(moved), int)).max() <= 1


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(-1, 4095), (-0.5, 0), (-1, None)])
def test_window_applies_to_values_of_a_negative_slope(slope, intercept, function):
    # Stored are other values; the displayed ones, and the window with them, are moved and scaled.
    moved = {"RescaleSlope": slope, "WindowWidth": 2000 * abs(slope)}
    moved["WindowCenter"] = (1900 - 4095) * abs(slope) + (intercept or 0)
    if intercept is not None:
        moved["RescaleIntercept"] = intercept
    plain = {"WindowCenter": 1900, "WindowWidth": 2000}
    if function:
        moved["VOILUTFunction"] = plain["VOILUTFunction"] = function
    found = open_xray(make_dicom(4095 - CHEST, **moved))
    expected = np.asarray(read_xray(make_dicom(CHEST, **plain)), int)
    assert found.warnings == ()
    assert np.abs(np.asarray(found.image, int) - expected).max() <= 1


def test_slope_without_an_intercept_is_applied():
    found = np.asarray(read_xray(make_dicom(4095 - CHEST, RescaleSlope=-1)), int)
    assert np.abs(found - np.asarray(read_xray(make_dicom(CHEST)), int)).max() <= 1


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
    found = open_xray(make_dicom(ramp, PixelData=ramp.tobytes(), **narrow, **palette))
    assert np.array_equal(np.asarray(found.image)[0], np.arange(256))
    assert found.coloured is False
    for kind, channels in (("RGB", [ramp] * 3), ("YBR_FULL", [ramp, ramp * 0 + 128] * 2)):
        data = np.dstack(channels[:2] + channels[1:2] if kind != "RGB" else channels).tobytes()
        colours = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PixelData": data}
        found = open_xray(make_dicom(ramp, PhotometricInterpretation=kind, **narrow, **colours))
        assert np.abs(np.asarray(found.image, int)[0] - np.arange(256)).max() <= 1
        assert found.coloured is False


def test_palette_of_32_bits_is_refused():
    wide = {"BitsAllocated": 32, "PhotometricInterpretation": "PALETTE COLOR"}
    with pytest.raises(XrayError, match="its type of palette is not supported"):
        read_xray(make_dicom(RAMP, PixelData=RAMP.astype("<u4").tobytes(), **wide))


@pytest.mark.parametrize("depth", [12, 32])
@pytest.mark.parametrize("shape", [None, "IDENTITY", "INVERSE"])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_presentation_lut_shape_inverts_once(kind, shape, depth):
    deep = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}
    deep["PixelData"] = CHEST.astype("<u4").tobytes()
    elements = deep if depth == 32 else {}
    plain = np.asarray(read_xray(make_dicom(CHEST, **elements)))
    elements = elements | ({"PresentationLUTShape": shape} if shape else {})
    found = np.asarray(read_xray(make_dicom(CHEST, PhotometricInterpretation=kind, **elements)))
    inverted = kind == "MONOCHROME1" or shape == "INVERSE"
    assert np.array_equal(found, 255 - plain if inverted else plain)


@pytest.mark.parametrize("top", [6000, 8191, 65535])
@pytest.mark.parametrize("signed", [0, 1])
def test_values_of_more_bits_than_stated_are_a_warning(top, signed):
    smooth = np.asarray(draw_xray(0, True, (40, 40)).resize((200, 200), Image.BICUBIC), float)
    values = (smooth / smooth.max() * top).astype(np.uint16) - signed * (top // 2)
    (warning,) = find_warnings(values, PixelRepresentation=signed)
    assert "values of more bits than the 12 that it states" in warning


def test_overlays_garbage_and_extended_signs_above_the_values_are_no_warning():
    overlay = CHEST.copy()
    overlay[20:30, 40:150] |= 1 << 12
    overlay[60:160, 60:62] |= 1 << 15
    garbage = CHEST | (np.arange(200, dtype=np.uint16) % 16 << 12)
    for values in (overlay, garbage, CHEST | 0xF000):
        assert find_warnings(values) == ()
    assert find_warnings(CHEST - 2048, PixelRepresentation=1) == ()


@pytest.mark.parametrize("window", [{"WindowWidth": 0}, {"VOILUTFunction": "ODD"}])
def test_window_that_cannot_be_applied_is_a_warning(window):
    (warning,) = find_warnings(**({"WindowCenter": 2048, "WindowWidth": 1024} | window))
    assert warning.startswith("The DICOM file's window or VOI LUT cannot be applied")


def test_voi_lut_that_cannot_be_applied_is_a_warning_and_a_sound_or_no_window_is_not():
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    empty = Dataset()
    empty.LUTDescriptor, empty.LUTData = [4, 0, 0], bytes(8)
    empty["LUTDescriptor"].VR, empty["LUTData"].VR = "US", "OW"
    for table in (Dataset(), empty):
        (warning,) = find_warnings(VOILUTSequence=Sequence([table]))
        assert "VOI LUT cannot be applied" in warning
    assert find_warnings(WindowCenter=2048, WindowWidth=4000) == find_warnings() == ()
