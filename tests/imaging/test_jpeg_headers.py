import pytest
from xray_kinds import encode_dicoms

from pneumonia_hf import XrayError, read_xray


def test_forged_size_in_a_compressed_frame_never_reaches_the_decoder():
    data = encode_dicoms(8)["dicom jpeg lossless"]
    start = data.index(b"\xff\xc3\0\x0b")
    for offset, forged in ((4, b"\xff"), (5, b"\xff\xff"), (7, b"\xff\xff"), (9, b"\x03")):
        bad = data[: start + offset] + forged + data[start + offset + len(forged) :]
        with pytest.raises(XrayError, match="compressed image"):
            read_xray(bad)
