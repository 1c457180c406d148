"""A DICOM file -> one 8-bit gray X-ray; the only file that imports pydicom, and late."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pneumonia_hf.errors import XrayError
from pneumonia_hf.imaging.dicom_display import render_levels, render_palette, render_samples
from pneumonia_hf.imaging.grayscale import check_size, scale_wide
from pneumonia_hf.imaging.jpeg_headers import check_frame
from pneumonia_hf.imaging.modalities import MODALITIES

if TYPE_CHECKING:
    from pydicom import Dataset

# Those that are no image of a patient, even where the file holds pixels.
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
_PIXEL_DATA = 0x7FE00010
_TABLES = (0x00283000, 0x00283010)  # sequences of modality and VOI LUTs
_MAX_TABLE_BYTES = 1_000_000
_MAX_READS = 100_000  # two or three for each element; real X-rays have a few hundred
_MAX_BYTES = 400_000_000
_MAX_INFLATED_BYTES = 150_000_000
# GDCM and Pillow's OpenJPEG hold several copies of a frame: 8 bytes a pixel of 16 bits.
_MAX_COMPRESSED_PIXELS = 48_000_000


@dataclass(frozen=True)
class DicomImage:
    """An X-ray as it is to be shown, [H, W] of 0 (black) to 255, and what the file says of it."""

    gray: np.ndarray
    coloured: bool
    mode: str
    modality: str


def read_dicom(name: str, stream: BinaryIO, most_pixels: int) -> DicomImage:
    """Return the X-ray in a DICOM file.

    Args:
        name: what the messages of errors call the file.
        stream: the file, at its start.
        most_pixels: bound on rows times columns, held before anything is decoded.

    Raises:
        XrayError: the file holds no image, or several, or one too large, or in a syntax that
            nothing here decodes.
        Exception: of many kinds, where the file is damaged.
    """
    dataset = _read_elements(name, stream)
    modality = str(dataset.get("Modality") or "").upper()
    modality = "".join(c for c in modality if c.isascii() and c.isalnum())[:16]
    if modality in NON_IMAGES or "PixelData" not in dataset:
        raise XrayError(_refuse(name, modality, dataset))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise XrayError(f"{name} holds {frames} frames; give one image a file.")
    _check_numbers(dataset)
    check_size(name, (dataset.Columns, dataset.Rows), most_pixels)
    kind = str(dataset.PhotometricInterpretation).strip()
    dataset.PhotometricInterpretation = kind
    pixels, kind_now = _decode(name, dataset)
    coloured = False
    if pixels.ndim == 3:
        gray, coloured = render_samples(pixels, kind_now, int(dataset.BitsStored))
    elif kind == "PALETTE COLOR":
        gray, coloured = render_palette(pixels, dataset)
    elif pixels.dtype.itemsize > 2:
        gray = scale_wide(pixels)
        if kind == "MONOCHROME1":
            np.subtract(255, gray, out=gray)
    else:
        gray = render_levels(pixels, dataset)
    return DicomImage(gray, coloured, f"DICOM {int(dataset.BitsStored)} bit {kind}", modality)


class _Counted:
    """A stream that gives up after more reads than any X-ray needs.

    Nested sequences of empty items would otherwise become millions of objects.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, _MAX_READS
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it has more elements than any X-ray")
        return self._stream.read(size)


def _read_elements(name: str, stream: BinaryIO) -> Dataset:
    from pydicom.filereader import read_dataset, read_partial
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
    )

    stream.seek(128)
    bare = stream.read(4) != b"DICM"
    if not bare:
        meta = read_dataset(_Counted(stream), False, True, stop_when=lambda tag, *_: tag.group != 2)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            stream = _inflate(name, stream)
    stream.seek(0)
    dataset = read_partial(_Counted(stream), _stop_after_pixels, force=bare)
    if dataset.file_meta.get("TransferSyntaxUID") is None:
        implicit, little = dataset.original_encoding
        syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else syntax
    return dataset


def _inflate(name: str, stream: BinaryIO) -> BinaryIO:
    """Return the file with its data set unpacked; pydicom would unpack a bomb whole."""
    place = stream.tell()
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    data = unpacker.decompress(stream.read(), _MAX_INFLATED_BYTES)
    if unpacker.unconsumed_tail:
        most = _MAX_INFLATED_BYTES // 10**6
        raise XrayError(f"{name} is a DICOM file that unpacks to more than {most} MB.")
    stream.seek(0)
    head = stream.read(place).replace(b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0")
    return io.BytesIO(head + data)


def _stop_after_pixels(tag: int, vr: str | None, length: int) -> bool:
    most = _MAX_TABLE_BYTES if tag in _TABLES else _MAX_BYTES
    if most < length < 0xFFFFFFFF:
        raise ValueError("an element is longer than in any X-ray")
    return tag > _PIXEL_DATA


def _refuse(name: str, modality: str, dataset: Dataset) -> str:
    from pydicom.uid import UID, UID_dictionary

    known = MODALITIES | NON_IMAGES
    if modality in known:
        what = f"modality {modality} ({known[modality]})"
    else:
        what = f"modality {modality}" if modality else ""
        storage = UID(str(dataset.get("SOPClassUID") or ""))
        if storage in UID_dictionary:
            storage = storage.name
            what = f"{what} ({storage})" if what else f"the kind {storage}"
    of = f" of {what}" if what else ""
    return f"{name} is a DICOM file{of}, which holds no image."


def _check_numbers(dataset: Dataset) -> None:
    # GDCM ends the process on some that pydicom lets through.
    allowed = {
        "SamplesPerPixel": (1, 3),
        "BitsAllocated": (1, 8, 16, 32),
        "BitsStored": range(1, 33),
        "PixelRepresentation": (0, 1),
    }
    for key in ("Rows", "Columns", "PhotometricInterpretation", *allowed):
        if dataset.get(key) is None:
            raise ValueError(f"it does not tell its {key}")
    for key, values in allowed.items():
        if dataset[key].value not in values:
            raise ValueError(f"its {key} is {dataset[key].value}")
    if dataset.BitsStored > dataset.BitsAllocated:
        raise ValueError(f"it stores {dataset.BitsStored} bits in {dataset.BitsAllocated}")


def _decode(name: str, dataset: Dataset) -> tuple[np.ndarray, str]:
    """Return the stored numbers, [H, W] or [H, W, 3], and which colours they stand for."""
    from pydicom import uid
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels import get_decoder

    jpeg = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit}
    jpeg_2000 = {uid.JPEG2000Lossless, uid.JPEG2000}
    high_throughput = {uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}
    lossless = {
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
        raise XrayError(f"{name} is a DICOM file in JPEG of 12 bits, which cannot be decoded.")
    elif syntax in jpeg | jpeg_2000 | high_throughput | lossless:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        frame = check_frame(
            frame, size, dataset.SamplesPerPixel, dataset.BitsAllocated, syntax in lossless
        )
        dataset.PixelData = encapsulate([frame])
        for key in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if key in dataset:
                delattr(dataset, key)
        options["decoding_plugin"] = "gdcm" if syntax in lossless else "pillow"
        if syntax in lossless and dataset.BitsAllocated not in (8, 16):
            raise ValueError(f"its BitsAllocated is {dataset.BitsAllocated}")
        if syntax in high_throughput:
            syntax = uid.JPEG2000  # Pillow's decoder tells them apart by itself
    elif syntax not in uid.AllTransferSyntaxes:
        raise ValueError("its transfer syntax is unknown")
    elif syntax.is_encapsulated:
        raise XrayError(f"{name} is a DICOM file in {syntax.name}, which cannot be decoded.")
    dataset.file_meta.TransferSyntaxUID = syntax
    decoder = get_decoder(syntax)
    if not syntax.is_encapsulated:
        # A view: what it leaves undone, _grey_levels does by table.
        options |= {"view_only": True, "correct_unused_bits": False}
    _quiet_gdcm(options)
    pixels, properties = decoder.as_array(dataset, index=0, raw=True, **options)
    return pixels, str(properties["photometric_interpretation"])


def _quiet_gdcm(options: dict) -> None:
    if options.get("decoding_plugin") == "gdcm":
        try:
            import gdcm
        except ImportError:
            return  # pydicom's message names what is missing
        gdcm.Trace.DebugOff()
        gdcm.Trace.WarningOff()
        gdcm.Trace.ErrorOff()


def _unpack_rle(frame: bytes, dataset: Dataset) -> bytes:
    """Return the numbers of a run-length coded frame, PS3.5 annex G, in planes.

    pydicom's own decoder unpacks whatever a forged file holds, this one no more than the image.
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
        raise ValueError("the run-length coded image is cut off")
    del unpacked[size:]
    return unpacked
