"""What is known of an X-ray beside its image, and the checks whether it can be one."""

import dataclasses
import io

import numpy as np
import pytest
from helpers import draw_xray
from PIL import Image
from xray_files import RAMP, encode, make_dicom

from pneumonia_hf import XrayError, open_xray, read_xray
from pneumonia_hf.imaging.read import to_xray
from pneumonia_hf.reasons import Caveat, Reason

GRAY = draw_xray(0, ill=True)
PHOTOGRAPH = Image.fromarray(np.full((40, 40, 3), (200, 40, 40), np.uint8))


def test_xray_gives_format_mode_modality_and_colour():
    assert open_xray(encode(GRAY.convert("RGB"), "PNG")).mode == "RGB"
    found = open_xray(encode(GRAY, "WEBP"))
    assert (found.format, found.coloured, found.modality) == ("WEBP", False, "")
    found = open_xray(make_dicom(RAMP))
    assert found.mode == "DICOM 12 bit MONOCHROME2"
    assert (found.format, found.modality, found.view, found.side) == ("DICOM", "DX", "", "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.view = "PA"


def test_xray_gives_view_and_side_as_the_header_has_them():
    found = open_xray(make_dicom(RAMP, ViewPosition=" PA LATERAL ", Laterality="L"))
    assert (found.view, found.side) == ("PA LATERAL", "L")
    found = open_xray(make_dicom(RAMP, ViewPosition="PA", Laterality="L", ImageLaterality="R"))
    assert (found.view, found.side) == ("PA", "R")


def test_colour_is_detected():
    assert open_xray(encode(PHOTOGRAPH, "PNG")).coloured is True


def test_image_carries_no_fact_of_its_file():
    data = make_dicom(RAMP, ViewPosition="LL", Modality="CT")
    for image in (read_xray(data), read_xray(encode(PHOTOGRAPH, "PNG"))):
        assert image.info == {}
        assert not {Reason.VIEW, Reason.MODALITY, Reason.COLOURED} & {
            caveat.reason for caveat in to_xray(image).caveats
        }


def test_input_checks_warn_of_other_modalities():
    slice_of_ct = open_xray(make_dicom(RAMP, Modality="CT"))
    assert slice_of_ct.warnings[0] == (
        "The DICOM file says that it is CT (computed tomography), not a chest radiograph."
    )
    assert slice_of_ct.caveats[0] == Caveat(Reason.MODALITY, slice_of_ct.warnings[0])
    for modality in ("DX", "CR", "OT", ""):
        found = open_xray(make_dicom(RAMP, Modality=modality)).warnings
        assert not any("DICOM" in warning for warning in found)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (PHOTOGRAPH.resize((200, 200)), Reason.COLOURED),
        (Image.new("RGB", (200, 200), (90, 90, 90)), Reason.BLANK),
        (GRAY.resize((30, 40)), Reason.SMALL),
        (GRAY.resize((900, 200)), Reason.LONG),
        (GRAY.point(lambda level: 255 * (level > 120)), Reason.MASK),
    ],
)
def test_decoded_image_is_checked_from_its_pixels(image, reason):
    found = to_xray(image)
    assert found.image.mode == "L" and found.mode == image.mode
    assert reason in {caveat.reason for caveat in found.caveats}
    assert (Reason.COLOURED in {caveat.reason for caveat in found.caveats}) == (
        reason == Reason.COLOURED
    )


def test_decoded_gray_image_is_not_copied_and_16_bits_are_scaled():
    assert to_xray(GRAY).image is GRAY and to_xray(GRAY).caveats == ()
    xray = open_xray(encode(GRAY, "PNG"))
    assert to_xray(xray) is xray
    deep = Image.fromarray((np.asarray(GRAY).astype(np.uint16) << 4) + 300)
    assert np.ptp(np.asarray(to_xray(deep).image)) == 255


def test_decoded_image_with_damaged_exif_data_is_refused():
    image = GRAY.copy()
    image.info["exif"] = b"Exif\0\0II*\0\xff"
    with pytest.raises(XrayError, match=r"The image has damaged EXIF data \(.+\)\.$"):
        to_xray(image)


@pytest.mark.parametrize("source", [np.zeros((64, 64)), io.BytesIO(b""), None])
def test_other_types_than_images_are_named(source):
    with pytest.raises(TypeError, match=f"not {type(source).__name__}; make an array an image"):
        to_xray(source)
