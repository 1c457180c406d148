"""Decode a DICOM file to one 8-bit grayscale X-ray."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from pneumonia_hf.errors import XrayError
from pneumonia_hf.imaging.dicom_display import (
    is_inverted,
    render_levels,
    render_palette,
    render_samples,
)
from pneumonia_hf.imaging.grayscale import check_size, scale_wide
from pneumonia_hf.imaging.jpeg_headers import check_frame
from pneumonia_hf.imaging.modalities import MODALITIES
from pneumonia_hf.imaging.xray import Xray
from pneumonia_hf.reasons import Caveat, Reason

if TYPE_CHECKING:
    from pydicom import Dataset

# Modalities without an image of a patient, even where the file has pixel data.
NON_IMAGES = {
    "AU": "audio",
    "DOC": "document",
    "FID": "fiducials",
    "KO": "key object selection",
    "M3D": "model for 3D printing",
    "PLAN": "plan",
    "PR": "presentation state",
    "REG": "registration",
    "RTDOSE": "radiotherapy dose",
    "RTPLAN": "radiotherapy plan",
    "RTRECORD": "radiotherapy record",
    "RTSTRUCT": "radiotherapy structures",
    "SEG": "segmentation",
    "SR": "structured report",
    "SMR": "stereometric relationship",
}
# ViewPosition of films that are not frontal (PS3.3 C.8.1.1 and C.8.11.5), and what is written
# besides. Decubitus films (LLD, RLD) are frontal.
_VIEWS = {
    "lateral": re.compile(r"[LR]L|(L|R|X ?)?LAT(ERAL)?"),
    "oblique": re.compile(r"[LR]LO|[LR][AP]O|OBL(IQUE)?"),
}
_LATERAL_CODES = {  # of the view code (CID 4010), in SNOMED CT and by their older names
    *("399067008", "399173006", "399198007"),
    *("R-102CD", "R-10236", "R-10232"),
}
_PIXEL_DATA = 0x7FE00010
_TABLES = (0x00283000, 0x00283010)  # sequences of modality and VOI LUTs
_MAX_TABLE_BYTES = 1_000_000
_MAX_READS = 100_000  # an element takes two or three reads; real X-rays have a few hundred elements
_MAX_BYTES = 400_000_000
_MAX_INFLATED_BYTES = 150_000_000
# GDCM and Pillow's OpenJPEG keep several copies of a frame: 8 bytes per 16-bit pixel.
_MAX_COMPRESSED_PIXELS = 48_000_000


def read_dicom(name: str, stream: BinaryIO, most_pixels: int) -> Xray:
    """Return the X-ray in a DICOM file as `open_xray` does; `name` is for error messages.

    Raises:
        XrayError: no image, several frames, more than `most_pixels`, or an unsupported syntax.
        Exception: of many types, if the file is damaged.
    """
    dataset = _read_elements(name, stream)
    modality = _read_code(dataset, "Modality").replace(" ", "")
    if modality in NON_IMAGES or "PixelData" not in dataset:
        raise XrayError(_explain_missing_image(name, modality, dataset))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise XrayError(f"{name} has {frames} frames; give one image per file.")
    _check_header(dataset)
    check_size(name, (dataset.Columns, dataset.Rows), most_pixels)
    photometric = str(dataset.PhotometricInterpretation).strip()
    dataset.PhotometricInterpretation = photometric
    pixels, colour_space = _decode(name, dataset)
    coloured = False
    caveats: list[Caveat] = []
    if view := _find_side_view(dataset):
        caveats.append(Reason.VIEW.caveat(view=view))
    if pixels.ndim == 3:
        gray, coloured = render_samples(pixels, colour_space, int(dataset.BitsStored))
    elif photometric == "PALETTE COLOR":
        gray, coloured = render_palette(pixels, dataset)
    elif pixels.dtype.itemsize > 2:
        gray = scale_wide(pixels)
        if is_inverted(dataset):
            np.subtract(255, gray, out=gray)
    else:
        gray = render_levels(pixels, dataset, caveats)
    return Xray(
        Image.fromarray(gray),
        mode=f"DICOM {int(dataset.BitsStored)} bit {photometric}",
        format="DICOM",
        coloured=coloured,
        modality=modality,
        view=_read_code(dataset, "ViewPosition"),
        side=_read_code(dataset, "ImageLaterality") or _read_code(dataset, "Laterality"),
        header_caveats=tuple(caveats),
    )


def _read_code(dataset: Dataset, name: str) -> str:
    """Return an element of a few capitals; some files hold anything there."""
    text = str(dataset.get(name) or "").upper()
    return "".join(c for c in text if c.isascii() and (c.isalnum() or c == " ")).strip()[:16]


def _find_side_view(dataset: Dataset) -> str | None:
    """Return lateral or oblique, if the header says so."""
    position = str(dataset.get("ViewPosition") or "").strip().upper()
    for view, pattern in _VIEWS.items():
        if any(pattern.fullmatch(word) for word in (position, *re.split(r"\W+", position))):
            return view
    for code in dataset.get("ViewCodeSequence") or ():
        meaning = str(code.get("CodeMeaning") or "").lower()
        if "oblique" in meaning:
            return "oblique"
        is_lateral = re.search(r"\blateral", meaning) and "decubitus" not in meaning
        if is_lateral or code.get("CodeValue") in _LATERAL_CODES:
            return "lateral"
    directions = dataset.get("PatientOrientation") or ()  # of rows and columns (C.7.6.1.1.1)
    is_given = not position and not isinstance(directions, str)
    # Neither is towards the front or the back of a patient who is seen from there.
    return "lateral" if is_given and any(str(one)[:1] in set("AP") for one in directions) else None


class _LimitedReader:
    """A stream with a limit on reads: nested empty items would become millions of objects."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, _MAX_READS
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it has more elements than any X-ray has")
        return self._stream.read(size)


def _read_elements(name: str, stream: BinaryIO) -> Dataset:
    from pydicom import uid
    from pydicom.filereader import read_dataset, read_partial

    stream.seek(128)
    bare = stream.read(4) != b"DICM"
    if not bare:
        meta = read_dataset(
            _LimitedReader(stream), False, True, stop_when=lambda tag, *_: tag.group != 2
        )
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            stream = _inflate(name, stream)
    stream.seek(0)
    dataset = read_partial(_LimitedReader(stream), _stop_after_pixels, force=bare)
    if dataset.file_meta.get("TransferSyntaxUID") is None:
        implicit, little = dataset.original_encoding
        syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else syntax
    return dataset


def _inflate(name: str, stream: BinaryIO) -> BinaryIO:
    """Return the file with its data set inflated; pydicom has no size limit here."""
    header_length = stream.tell()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(stream.read(), _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        most = _MAX_INFLATED_BYTES // 10**6
        raise XrayError(f"{name} is a DICOM file that unpacks to more than {most} MB.")
    stream.seek(0)
    header = stream.read(header_length)
    header = header.replace(b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0")
    return io.BytesIO(header + data)


def _stop_after_pixels(tag: int, vr: str | None, length: int) -> bool:
    most = _MAX_TABLE_BYTES if tag in _TABLES else _MAX_BYTES
    if most < length < 0xFFFFFFFF:
        raise ValueError("it has an element longer than any in an X-ray")
    return tag > _PIXEL_DATA


def _explain_missing_image(name: str, modality: str, dataset: Dataset) -> str:
    from pydicom.uid import UID, UID_dictionary

    known = MODALITIES | NON_IMAGES
    if modality in known:
        what = f"modality {modality} ({known[modality]})"
    else:
        what = f"modality {modality}" if modality else ""
        storage = UID(str(dataset.get("SOPClassUID") or ""))
        if storage in UID_dictionary:
            storage = storage.name
            what = f"{what} ({storage})" if what else f"type {storage}"
    of = f" of {what}" if what else ""
    return f"{name} is a DICOM file{of}, which holds no image."


def _check_header(dataset: Dataset) -> None:
    # GDCM crashes on some values that pydicom accepts.
    allowed = {
        "SamplesPerPixel": (1, 3),
        "BitsAllocated": (1, 8, 16, 32),
        "BitsStored": range(1, 33),
        "PixelRepresentation": (0, 1),
    }
    for key in ("Rows", "Columns", "PhotometricInterpretation", *allowed):
        if dataset.get(key) is None:
            raise ValueError(f"it has no {key}")
    for key, values in allowed.items():
        if dataset[key].value not in values:
            raise ValueError(f"its {key} is {dataset[key].value}")
    if dataset.BitsStored > dataset.BitsAllocated:
        raise ValueError(f"it stores {dataset.BitsStored} bits in {dataset.BitsAllocated}")


def _decode(name: str, dataset: Dataset) -> tuple[np.ndarray, str]:
    """Return the stored values, [H, W] or [H, W, 3], and their photometric interpretation."""
    from pydicom import uid
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels import get_decoder

    high_throughput = {uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}
    by_pillow = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000Lossless, uid.JPEG2000}
    by_pillow |= high_throughput
    by_gdcm = {  # JPEG lossless and JPEG-LS
        uid.JPEGLossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEGLSNearLossless,
    }
    syntax = dataset.file_meta.TransferSyntaxUID
    size = (dataset.Columns, dataset.Rows)
    if syntax in uid.AllTransferSyntaxes and syntax.is_encapsulated:
        samples = dataset.SamplesPerPixel * max(dataset.BitsAllocated // 16, 1)
        check_size(name, size, _MAX_COMPRESSED_PIXELS // samples)
    options = {}
    if syntax == uid.RLELossless:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = _unpack_rle(frame, dataset)
        dataset["PixelData"].VR = "OW"
        dataset.PlanarConfiguration = 1
        syntax = uid.ExplicitVRLittleEndian
    elif syntax == uid.JPEGExtended12Bit and dataset.BitsStored > 8:
        raise XrayError(f"{name} is a DICOM file in 12-bit JPEG, which cannot be decoded.")
    elif syntax in by_pillow | by_gdcm:
        lossless = syntax in by_gdcm
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        frame = check_frame(frame, size, dataset.SamplesPerPixel, dataset.BitsAllocated, lossless)
        dataset.PixelData = encapsulate([frame])
        for key in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if key in dataset:
                delattr(dataset, key)
        options["decoding_plugin"] = "gdcm" if lossless else "pillow"
        if lossless:
            if dataset.BitsAllocated not in (8, 16):
                raise ValueError(f"its BitsAllocated is {dataset.BitsAllocated}")
            import gdcm

            gdcm.Trace.DebugOff()
            gdcm.Trace.WarningOff()
            gdcm.Trace.ErrorOff()
        if syntax in high_throughput:
            syntax = uid.JPEG2000  # Pillow's decoder detects the difference
    elif syntax not in uid.AllTransferSyntaxes:
        raise ValueError("its transfer syntax is unknown")
    elif syntax.is_encapsulated:
        raise XrayError(f"{name} is a DICOM file in {syntax.name}, which cannot be decoded.")
    dataset.file_meta.TransferSyntaxUID = syntax
    decoder = get_decoder(syntax)
    if not syntax.is_encapsulated:
        # No copy: render_levels masks unused bits in its lookup table.
        options |= {"view_only": True, "correct_unused_bits": False}
    pixels, properties = decoder.as_array(dataset, index=0, raw=True, **options)
    return pixels, str(properties["photometric_interpretation"])


def _unpack_rle(frame: bytes, dataset: Dataset) -> bytes:
    """Return the planes of a run-length coded frame (PS3.5 annex G).

    pydicom's decoder has no size limit; this one stops at the size of the image.
    """
    size, depth = dataset.Rows * dataset.Columns, dataset.BitsAllocated // 8
    count, *starts = struct.unpack_from("<16L", frame)
    if dataset.BitsAllocated % 8 or count != depth * dataset.SamplesPerPixel or count > 15:
        raise ValueError("the run-length coded image does not fit its header")
    starts = [*starts[:count], len(frame)]
    planes = np.empty((dataset.SamplesPerPixel, size, depth), np.uint8)
    for index in range(count):
        segment = _unpack_segment(frame[starts[index] : starts[index + 1]], size)
        planes[index // depth, :, depth - 1 - index % depth] = np.frombuffer(segment, np.uint8)
    data = planes.tobytes()
    return data + b"\0" * (len(data) % 2)


def _unpack_segment(segment: bytes, size: int) -> bytearray:
    unpacked, position, end = bytearray(), 0, len(segment)
    while len(unpacked) < size and position < end:
        head = segment[position]
        if head < 128:
            unpacked += segment[position + 1 : position + 2 + head]
            position += 2 + head
        else:
            if head > 128:
                unpacked += segment[position + 1 : position + 2] * (257 - head)
            position += 2
    if len(unpacked) < size:
        raise ValueError("the run-length coded image is truncated")
    del unpacked[size:]
    return unpacked
