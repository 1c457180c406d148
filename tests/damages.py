"""Damage a file as a broken disk or a forger would; it depends on a seed and a number only."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

# A full-size X-ray takes as long as twenty small ones.
FULL_SIZE_SHARE = 0.12
LARGEST = 7999  # a square of this side is just below 64 megapixels
EXTREMES = (0, 1, 2, 7, 255, 4096, 8000, 16384, 32767, 32768, 65535)


def truncate(draw: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    return data[: draw.choice([draw.randrange(len(data)), draw.randrange(min(len(data), 2000))])]


def flip_bits(draw: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    end = draw.choice([len(data), min(len(data), 1000)])
    for _ in range(draw.choice([1, 1, 4, 30, 300])):
        data[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return data


def swap_header(draw: random.Random, data: bytearray, others: list[bytes]) -> bytes:
    length = draw.choice([2, 4, 8, 16, 132, 400, 1500])
    return draw.choice(others)[:length] + data[draw.choice([0, length]) :]


def blank_block(draw: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    start, length = draw.randrange(len(data)), draw.choice([4, 64, 1000, 20000])
    data[start : start + length] = bytes(length)
    return data


def scramble_block(draw: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    start, length = draw.randrange(len(data)), draw.choice([4, 64, 1000, 20000])
    data[start : start + length] = draw.randbytes(length)
    return data


def double_tail(draw: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    return data + data[draw.randrange(len(data)) :]


def forge_number(draw: random.Random, data: bytearray, _: list[bytes]) -> bytes:
    for _ in range(draw.choice([1, 1, 2, 5])):
        form = draw.choice("<>") + draw.choice("BHI")
        size = struct.calcsize(form)
        value = draw.choice([*EXTREMES, 2**31 - 1, 2**31, 2**32 - 1]) % 256**size
        start = draw.randrange(min(len(data) - size, draw.choice([64, 300, 3000])))
        struct.pack_into(form, data, start, value)
    return data


def forge_size(draw: random.Random, data: bytearray, others: list[bytes]) -> bytes:
    """Change the size and depth in the header consistently, as a forger would."""
    if data[:3] == b"\xff\xd8\xff":
        return forge_jpeg(draw, data)
    if data[:4] == b"\x89PNG":
        return forge_png(draw, data)
    if data[:2] == b"BM":
        struct.pack_into("<i", data, draw.choice([18, 22]), draw.choice(EXTREMES))
        if draw.random() < 0.2:
            struct.pack_into("<ii", data, 18, LARGEST, draw.choice([LARGEST, -LARGEST]))
        return data
    if data[:4] in (b"II*\0", b"MM\0*"):
        return forge_tiff(draw, data)
    if data[:4] == b"RIFF":
        start = draw.choice([4, 16, 24, 26, 27, 28])
        struct.pack_into("<H", data, start, draw.choice(EXTREMES))
        return data
    if data[128:132] == b"DICM":
        return forge_dicom(draw, data)
    return forge_number(draw, data, others)


def forge_jpeg(draw: random.Random, data: bytearray, start: int = 0) -> bytes:
    for marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7):
        found = data.find(bytes([0xFF, marker, 0, 11 if marker > 0xC2 else 17]), start)
        found = found if found >= 0 else data.find(bytes([0xFF, marker, 0, 11]), start)
        if found >= 0:
            if draw.random() < 0.2:
                struct.pack_into(">HH", data, found + 5, LARGEST, LARGEST)
                break
            offset, form = draw.choice([(4, "B"), (5, ">H"), (7, ">H"), (9, "B"), (11, "B")])
            struct.pack_into(form, data, found + offset, draw.choice(EXTREMES) % (256 ** len(form)))
            break
    return data


def forge_png(draw: random.Random, data: bytearray) -> bytes:
    offset, form, values = draw.choice(
        [
            (16, ">I", EXTREMES),
            (20, ">I", EXTREMES),
            (24, "B", (1, 2, 4, 8, 16)),
            (25, "B", (0, 2, 3, 4, 6)),
            (28, "B", (0, 1)),
        ]
    )
    struct.pack_into(form, data, offset, draw.choice(values))
    if draw.random() < 0.2:
        struct.pack_into(">II", data, 16, LARGEST, LARGEST)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return data


def forge_tiff(draw: random.Random, data: bytearray) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", data, 4)[0]
    count = struct.unpack_from(f"{order}H", data, start)[0]
    if draw.random() < 0.2:
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            if struct.unpack_from(order + "H", data, entry)[0] in (256, 257, 278):
                struct.pack_into(order + "HII", data, entry + 2, 4, 1, LARGEST)
        return data
    entry = start + 2 + 12 * draw.randrange(count)
    form, offset = draw.choice([("H", 2), ("I", 4), ("I", 8), ("H", 8), ("H", 8)])
    struct.pack_into(order + form, data, entry + offset, draw.choice(EXTREMES))
    return data


def forge_dicom(draw: random.Random, data: bytearray) -> bytes:
    frames = [data.find(start) for start in (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")]
    frame = max(frames)
    if frame >= 0 and draw.random() < 0.4:
        if data[frame + 1] == 0xD8:
            return forge_jpeg(draw, data, frame)
        offset = draw.choice([8, 12, 16, 20, 24, 28, 32, 36])
        struct.pack_into(">I", data, frame + offset, draw.choice(EXTREMES))
        return data
    if draw.random() < 0.2:
        for tag in (0x10, 0x11):
            found = data.find(struct.pack("<HH", 0x28, tag), 132)
            struct.pack_into("<H", data, found + 8, LARGEST)
        for found in [place for place in frames if place >= 0]:
            if data[found + 1] == 0x4F:
                struct.pack_into(">II", data, found + 8, LARGEST, LARGEST)
                struct.pack_into(">II", data, found + 24, LARGEST, LARGEST)
        return data
    numbers = {
        0x0002: (0, 1, 3, 4, 255),  # SamplesPerPixel
        0x0010: EXTREMES,  # Rows
        0x0011: EXTREMES,  # Columns
        0x0100: (0, 1, 8, 12, 16, 32, 64, 65535),  # BitsAllocated
        0x0101: (0, 1, 8, 10, 16, 17, 32, 65535),  # BitsStored
        0x0102: (0, 7, 15, 65535),  # HighBit
        0x0103: (0, 1, 2, 65535),  # PixelRepresentation
    }
    for _ in range(draw.choice([1, 1, 2, 3])):
        tag = draw.choice([*numbers, 0x0010, 0x0011])
        found = data.find(struct.pack("<HH", 0x28, tag), 132)
        if found >= 0:
            struct.pack_into("<H", data, found + 8, draw.choice(numbers[tag]))
    if draw.random() < 0.3:
        # The length of any element, or the values of a window.
        groups = (b"\x08\0", b"\x10\0", b"\x20\0", b"\x28\0", b"\xe0\x7f")
        found = data.find(draw.choice(groups), draw.randrange(132, 1500))
        if found >= 0:
            struct.pack_into("<H", data, found + draw.choice([4, 6, 8]), draw.choice(EXTREMES))
    if draw.random() < 0.1:
        element = struct.pack("<HH2sH", 0x28, 8, b"IS", 6) + draw.choice(
            [b"99999 ", b"0     ", b"-1    ", b"x     "]
        )
        found = data.find(b"\x28\0\x10\0US", 132)
        if found >= 0:
            data[found:found] = element  # NumberOfFrames
    return data


DAMAGES: dict[str, Callable[[random.Random, bytearray, list[bytes]], bytes]] = {
    function.__name__: function
    for function in (
        truncate,
        flip_bits,
        swap_header,
        blank_block,
        scramble_block,
        double_tail,
        forge_number,
        forge_size,
    )
}


def damage_xray(seeds: tuple[dict, dict], seed: int, number: int) -> tuple[str, str, bytes]:
    """Return the kind, the damages and the bytes of damaged X-ray `number`."""
    draw = random.Random(f"{seed}-{number}")
    pool = seeds[draw.random() < FULL_SIZE_SHARE] or seeds[0]
    kind = draw.choice(sorted(pool))
    others = [seeds[0][name] for name in sorted(seeds[0])]
    data, done = bytearray(pool[kind]), []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        name = draw.choice([*DAMAGES, "forge_size"])
        done.append(name)
        try:
            data = bytearray(DAMAGES[name](draw, data, others))
        except (struct.error, IndexError, ValueError):
            done[-1] += " (nothing left to damage)"
    return kind, " + ".join(done), bytes(data)
