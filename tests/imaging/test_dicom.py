"""What a DICOM header says of its image, and what is said when it cannot be followed."""

import numpy as np
import pytest
from helpers import draw_xray
from PIL import Image
from xray_files import make_dicom

from pneumonia_hf import read_xray
from pneumonia_hf.imaging.input_checks import input_warnings

CHEST = np.asarray(draw_xray(0, ill=True, size=(200, 200))).astype(np.uint16) * 16


def find_warnings(values: np.ndarray = CHEST, **elements) -> tuple[str, ...]:
    return input_warnings(read_xray(make_dicom(values, **elements)))


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


@pytest.mark.parametrize(
    "position", ["LL", "RL", "LATERAL", "LAT", "LLO", "RAO", "PA LATERAL", "X LAT", "XLAT"]
)
def test_view_position_that_is_not_frontal_is_a_warning(position):
    (warning,) = find_warnings(ViewPosition=position)
    view = "oblique" if position.endswith("O") else "lateral"
    assert warning == f"The DICOM file says that its view is {view}, not frontal."


@pytest.mark.parametrize("position", ["AP", "PA", "", None, "LLD", "RLD", "FLAT"])
def test_frontal_and_unknown_view_positions_are_no_warning(position):
    assert find_warnings(ViewPosition=position) == ()


@pytest.mark.parametrize(
    ("value", "meaning", "view"),
    [
        ("399067008", "", "lateral"),
        ("R-10236", "Linke Seite", "lateral"),
        ("1", "Left Lateral", "lateral"),
        ("399135007", "left anterior oblique", "oblique"),
        ("272479007", "postero-anterior", None),
        ("R-10210", "antero-posterior left lateral decubitus", None),
    ],
)
def test_view_code_that_is_not_frontal_is_a_warning(value, meaning, view):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    found = find_warnings(ViewCodeSequence=Sequence([code]))
    assert len(found) == (view is not None)
    assert view is None or f"its view is {view}" in found[0]


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
