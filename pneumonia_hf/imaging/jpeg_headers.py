"""Check the header of a compressed DICOM frame before a decoder reads it.

The C++ decoders trust their input: of 10,000 damaged frames of lossless JPEG and JPEG-LS, 27
crashed GDCM, all with a damaged header. So the header is parsed, compared with the DICOM header
and rebuilt from the segments that are known.
"""

from __future__ import annotations

import re
import struct

_HUFFMAN, _SCAN, _RESTART, _PRESETS, _END = 0xC4, 0xDA, 0xDD, 0xF8, 0xD9
# All start-of-frame markers, with that of JPEG-LS.
_FRAMES = (set(range(0xC0, 0xD0)) | {0xF7}) - {_HUFFMAN, 0xC8, 0xCC}
_LOSSLESS, _LOSSY = {0xC3, 0xF7}, {0xC0, 0xC1}
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # ends the coded data of lossless JPEG
_MARKER_LS = re.compile(rb"\xff[\x80-\xcf\xd8-\xff]")  # JPEG-LS stuffs one bit, not a byte
# OpenJPEG allocates about 6 kB per tile before decoding; the largest detectors need about 5,000
# tiles of 64 x 64.
_MAX_TILES = 8192


def check_frame(
    frame: bytes, size: tuple[int, int], samples: int, bits: int, lossless: bool
) -> bytes:
    """Return a JPEG, JPEG-LS or JPEG 2000 codestream that is safe for a C++ decoder.

    `size` (columns, rows), `samples` per pixel and `bits` per sample are the DICOM header's;
    `lossless` means lossless JPEG or JPEG-LS.

    Raises:
        ValueError: the frame contradicts the DICOM header, or is damaged.
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0 and not lossless:
        frame = frame[start:]  # without JP2 boxes, which DICOM does not allow
        _check_jpeg_2000(frame, size, samples, bits)
        return frame
    if frame[:2] != b"\xff\xd8":
        raise ValueError("the compressed image has no JPEG header")
    return _check_jpeg(frame, size, samples, bits, lossless)


def _check_jpeg_2000(frame: bytes, size: tuple[int, int], samples: int, bits: int) -> None:
    if len(frame) < 42 + 3 * samples:
        raise ValueError("the compressed image is truncated")
    right, bottom, left, top, *tile = struct.unpack_from(">8L", frame, 8)
    _compare((right - left, bottom - top), size)
    _compare(struct.unpack_from(">H", frame, 40), (samples,), "samples")
    width, height, tile_left, tile_top = tile
    if not (width and height and tile_left <= left and tile_top <= top):
        raise ValueError("the tiles of the compressed image are invalid")
    if -(-(right - tile_left) // width) * -(-(bottom - tile_top) // height) > _MAX_TILES:
        raise ValueError("the compressed image has too many tiles")
    for sample in range(samples):
        depth, *step = frame[42 + 3 * sample : 45 + 3 * sample]
        if (depth & 127) + 1 > bits or step != [1, 1]:
            raise ValueError("the samples of the compressed image do not fit the header")


def _check_jpeg(
    frame: bytes, size: tuple[int, int], samples: int, bits: int, lossless: bool
) -> bytes:
    rebuilt, kind, position = [frame[:2]], None, 2
    while True:
        position = _next_marker(frame, position)
        marker = frame[position + 1]
        length = int.from_bytes(frame[position + 2 : position + 4], "big")
        segment = frame[position : position + 2 + length]
        if length < 2 or len(segment) < 2 + length:
            raise ValueError("the compressed image is truncated")
        body = segment[4:]
        position += len(segment)
        if marker in _FRAMES:
            if kind is not None:
                raise ValueError("the compressed image has two headers")
            kind = marker
            if kind not in (_LOSSLESS if lossless else _LOSSY):
                raise ValueError("the compressed image contradicts its transfer syntax")
            _check_start(body, size, samples, bits)
        if kind in _LOSSLESS and marker == _SCAN:
            _check_scan(body, samples, kind)
            rebuilt.append(segment)
            break
        if marker == _SCAN:
            if kind is None:
                raise ValueError("the compressed image has no header")
            return frame  # Pillow's decoder handles damage in the rest
        if marker == _HUFFMAN:
            _check_tables(body)
        is_preset = marker == _PRESETS and len(body) == 11 and body[0] == 1
        if marker in _LOSSLESS or marker in (_HUFFMAN, _RESTART) or is_preset:
            rebuilt.append(segment)
    ending = (_MARKER_LS if kind == 0xF7 else _MARKER).search(frame, position)
    rebuilt += [frame[position : ending.start() if ending else len(frame)], b"\xff\xd9"]
    return b"".join(rebuilt)


def _next_marker(frame: bytes, position: int) -> int:
    if frame[position : position + 1] != b"\xff":
        raise ValueError("the header of the compressed image is damaged")
    while frame[position + 1 : position + 2] == b"\xff":  # fill bytes
        position += 1
    if position + 4 > len(frame):
        raise ValueError("the compressed image is truncated")
    return position


def _check_start(body: bytes, size: tuple[int, int], samples: int, bits: int) -> None:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise ValueError("the header of the compressed image is damaged")
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    _compare((width, height), size)
    _compare((components,), (samples,), "samples")
    if not 2 <= precision <= min(bits, 16):
        raise ValueError(f"the compressed image has {precision} bits, the header {bits}")


def _check_scan(body: bytes, samples: int, kind: int) -> None:
    if len(body) != 4 + 2 * samples or body[0] != samples:
        raise ValueError("the compressed image is not in one scan")
    if kind == 0xC3 and not (1 <= body[-3] <= 7 and body[-1] & 15 < 16):
        raise ValueError("the compressed image has an unknown predictor")


def _check_tables(body: bytes) -> None:
    while body:
        counts = body[1:17]
        if len(counts) < 16 or sum(counts) > 256 or len(body) < 17 + sum(counts):
            raise ValueError("the tables of the compressed image are damaged")
        body = body[17 + sum(counts) :]


def _compare(found: tuple[int, ...], header: tuple[int, ...], what: str = "pixels") -> None:
    if tuple(found) != tuple(header):
        text = [" x ".join(map(str, numbers)) for numbers in (found, header)]
        raise ValueError(f"the compressed image has {text[0]} {what}, the header {text[1]}")
