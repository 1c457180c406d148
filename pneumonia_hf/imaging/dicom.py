"""A DICOM file -> one 8-bit grey film; the only file that imports pydicom, and late."""

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

# Those that are no picture of a patient, even where the file holds pixels.
NOT_PICTURES = {
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
_MAX_READS = 100_000  # two or three for each element; real films have a few hundred
_MAX_BYTES = 400_000_000
_MAX_INFLATED_BYTES = 150_000_000
# GDCM and Pillow's OpenJPEG hold several copies of a frame: 8 bytes a pixel of 16 bits.
_MAX_COMPRESSED_PIXELS = 48_000_000


@dataclass(frozen=True)
class Film:
    """A film as it is to be shown, [H, W] of 0 (black) to 255, and what the file says of it."""

    grey: np.ndarray
    coloured: bool
    mode: str
    modality: str


def read_film(name: str, stream: BinaryIO, most_pixels: int) -> Film:
    """Return the film in a DICOM file.

    Args:
        name: what the messages of errors call the file.
        stream: the file, at its start.
        most_pixels: bound on rows times columns, held before anything is decoded.

    Raises:
        XrayError: the file holds no picture, or several, or one too large, or in a syntax that
            nothing here decodes.
        Exception: of many kinds, where the file is damaged.
    """
    film = _read_elements(name, stream)
    modality = str(film.get("Modality") or "").upper()
    modality = "".join(c for c in modality if c.isascii() and c.isalnum())[:16]
    if modality in NOT_PICTURES or "PixelData" not in film:
        raise XrayError(_refuse(name, modality, film))
    frames = int(film.get("NumberOfFrames") or 1)
    if frames > 1:
        raise XrayError(f"{name} holds {frames} frames; give one picture a file.")
    _check_numbers(film)
    check_size(name, (film.Columns, film.Rows), most_pixels)
    kind = str(film.PhotometricInterpretation).strip()
    film.PhotometricInterpretation = kind
    pixels, kind_now = _decode(name, film)
    coloured = False
    if pixels.ndim == 3:
        grey, coloured = render_samples(pixels, kind_now, int(film.BitsStored))
    elif kind == "PALETTE COLOR":
        grey, coloured = render_palette(pixels, film)
    elif pixels.dtype.itemsize > 2:
        grey = scale_wide(pixels)
        if kind == "MONOCHROME1":
            np.subtract(255, grey, out=grey)
    else:
        grey = render_levels(pixels, film)
    return Film(grey, coloured, f"DICOM {int(film.BitsStored)} bit {kind}", modality)


class _Counted:
    """A stream that gives up after more reads than any film needs.

    Nested sequences of empty items would otherwise become millions of objects.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, _MAX_READS
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it has more elements than any film")
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
    film = read_partial(_Counted(stream), _stop_after_pixels, force=bare)
    if film.file_meta.get("TransferSyntaxUID") is None:
        implicit, little = film.original_encoding
        syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        film.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else syntax
    return film


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
        raise ValueError("an element is longer than in any film")
    return tag > _PIXEL_DATA


def _refuse(name: str, modality: str, film: Dataset) -> str:
    from pydicom.uid import UID, UID_dictionary

    known = MODALITIES | NOT_PICTURES
    if modality in known:
        what = f"modality {modality} ({known[modality]})"
    else:
        what = f"modality {modality}" if modality else ""
        storage = UID(str(film.get("SOPClassUID") or ""))
        if storage in UID_dictionary:
            storage = storage.name
            what = f"{what} ({storage})" if what else f"the kind {storage}"
    of = f" of {what}" if what else ""
    return f"{name} is a DICOM file{of}, which holds no picture."


def _check_numbers(film: Dataset) -> None:
    # GDCM ends the process on some that pydicom lets through.
    allowed = {
        "SamplesPerPixel": (1, 3),
        "BitsAllocated": (1, 8, 16, 32),
        "BitsStored": range(1, 33),
        "PixelRepresentation": (0, 1),
    }
    for key in ("Rows", "Columns", "PhotometricInterpretation", *allowed):
        if film.get(key) is None:
            raise ValueError(f"it does not tell its {key}")
    for key, values in allowed.items():
        if film[key].value not in values:
            raise ValueError(f"its {key} is {film[key].value}")
    if film.BitsStored > film.BitsAllocated:
        raise ValueError(f"it stores {film.BitsStored} bits in {film.BitsAllocated}")


def _decode(name: str, film: Dataset) -> tuple[np.ndarray, str]:
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
    syntax = film.file_meta.TransferSyntaxUID
    size = (film.Columns, film.Rows)
    if syntax in uid.AllTransferSyntaxes and syntax.is_encapsulated:
        samples = film.SamplesPerPixel * max(film.BitsAllocated // 16, 1)
        check_size(name, size, _MAX_COMPRESSED_PIXELS // samples)
    options = {}
    if syntax == uid.RLELossless:
        frame = get_frame(film.PixelData, 0, number_of_frames=1)
        film.PixelData = _unpack_rle(frame, film)
        film["PixelData"].VR = "OW"
        film.PlanarConfiguration = 1
        syntax = uid.ExplicitVRLittleEndian
    elif syntax == uid.JPEGExtended12Bit and film.BitsStored > 8:
        raise XrayError(f"{name} is a DICOM file in JPEG of 12 bits, which cannot be decoded.")
    elif syntax in jpeg | jpeg_2000 | high_throughput | lossless:
        frame = get_frame(film.PixelData, 0, number_of_frames=1)
        frame = check_frame(
            frame, size, film.SamplesPerPixel, film.BitsAllocated, syntax in lossless
        )
        film.PixelData = encapsulate([frame])
        for key in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if key in film:
                delattr(film, key)
        options["decoding_plugin"] = "gdcm" if syntax in lossless else "pillow"
        if syntax in lossless and film.BitsAllocated not in (8, 16):
            raise ValueError(f"its BitsAllocated is {film.BitsAllocated}")
        if syntax in high_throughput:
            syntax = uid.JPEG2000  # Pillow's decoder tells them apart by itself
    elif syntax not in uid.AllTransferSyntaxes:
        raise ValueError("its transfer syntax is unknown")
    elif syntax.is_encapsulated:
        raise XrayError(f"{name} is a DICOM file in {syntax.name}, which cannot be decoded.")
    film.file_meta.TransferSyntaxUID = syntax
    decoder = get_decoder(syntax)
    if not syntax.is_encapsulated:
        # A view: what it leaves undone, _grey_levels does by table.
        options |= {"view_only": True, "correct_unused_bits": False}
    _quiet_gdcm(options)
    pixels, properties = decoder.as_array(film, index=0, raw=True, **options)
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


def _unpack_rle(frame: bytes, film: Dataset) -> bytes:
    """Return the numbers of a run-length coded frame, PS3.5 annex G, in planes.

    pydicom's own decoder unpacks whatever a forged file holds, this one no more than the picture.
    """
    size, depth = film.Rows * film.Columns, film.BitsAllocated // 8
    count, *starts = struct.unpack_from("<16L", frame)
    if film.BitsAllocated % 8 or count != depth * film.SamplesPerPixel or count > 15:
        raise ValueError("the run-length coded picture does not fit its header")
    starts = [*starts[:count], len(frame)]
    planes = np.empty((film.SamplesPerPixel, size, depth), np.uint8)
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
        raise ValueError("the run-length coded picture is cut off")
    del unpacked[size:]
    return unpacked
