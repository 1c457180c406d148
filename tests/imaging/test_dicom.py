"""What a DICOM file holds and says of its image, and how it is decoded or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from helpers import draw_xray
from xray_files import RAMP, make_dicom
from xray_kinds import encode_dicoms, find_dicom, transcode

from pneumonia_hf import XrayError, open_xray, read_xray
from pneumonia_hf.imaging import read

CHEST = np.asarray(draw_xray(0, ill=True, size=(200, 200))).astype(np.uint16) * 16


def find_warnings(values: np.ndarray = CHEST, **elements) -> tuple[str, ...]:
    return open_xray(make_dicom(values, **elements)).warnings


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


def test_sequence_of_a_million_empty_items_is_refused():
    sequence = b"\x28\0\x10\x30SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0\0\0\0\0" * 10**6
    data = make_dicom(RAMP)
    start = data.index(b"\xe0\x7f\x10\0")
    with pytest.raises(XrayError, match="more elements than any X-ray"):
        read_xray(data[:start] + sequence + data[start:])


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
    ("directions", "position", "lateral"),
    [
        *((["A", "F"], "", True), (["P", "F"], None, True), (["AL", "F"], None, True)),
        *((["F", "A"], None, True), (["L", "F"], None, False), (["R", "FA"], None, False)),
        *((["A", "F"], "PA", False), ("PA", None, False), (None, None, False)),
    ],
)
def test_directions_of_a_lateral_film_without_a_view_position_are_a_warning(
    directions, position, lateral
):
    found = find_warnings(PatientOrientation=directions, ViewPosition=position)
    assert found == ("The DICOM file says that its view is lateral, not frontal.",) * lateral


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
