"""Read thousands of damaged X-rays: each must give an image or an XrayError, within limits.

    python tests/fuzz_xray.py --count 2000 --seed 13 [--xrays FOLDER] [--keep FOLDER]

The damage depends only on the seed and the case number: `--first N --count 1` repeats case N. A
child process reads the files; a crash or a hang is a breach, like a wrong exception.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import re
import selectors
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CPU_SECONDS, MEGABYTES, SILENT_SECONDS = 2.0, 500.0, 30.0
# A full-size X-ray takes as long as twenty small ones.
FULL_SIZE_SHARE = 0.12
LARGEST = 7999  # a square of this side is just below 64 megapixels
EXTREMES = (0, 1, 2, 7, 255, 4096, 8000, 16384, 32767, 32768, 65535)


@dataclass
class Tally:
    """The results for one kind of X-ray."""

    images: int = 0
    refusals: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0
    breaches: list[str] = field(default_factory=list)


# -- seeds ----------------------------------------------------------------------------------------


def encode_images(gray: Image.Image, small: bool = True) -> dict[str, bytes]:
    """Return a gray X-ray in every image format that `read_xray` supports."""
    rng = np.random.default_rng(0)
    deep = (np.asarray(gray, np.uint16) << 4) + rng.integers(0, 16, gray.size[::-1], np.uint16)
    colours = Image.merge("RGB", [gray, gray.point(lambda v: v // 2), gray])
    clear = colours.copy()
    clear.putalpha(gray)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    kinds = {
        "jpeg": (gray, "JPEG", {"quality": 90, "exif": exif}),
        "jpeg progressive": (colours, "JPEG", {"progressive": True}),
        "png 8": (gray, "PNG", {}),
        "png 16": (Image.fromarray(deep), "PNG", {}),
        "png rgba": (clear, "PNG", {}),
        "png palette": (colours.quantize(64), "PNG", {"transparency": 3}),
        "tiff": (gray, "TIFF", {}),
        "tiff lzw": (gray, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate 16": (Image.fromarray(deep), "TIFF", {"compression": "tiff_deflate"}),
        "tiff float": (Image.fromarray(deep.astype(np.float32)), "TIFF", {}),
        "tiff jpeg": (colours, "TIFF", {"compression": "jpeg"}),
        "bmp": (gray, "BMP", {}),
        "bmp rgb": (colours, "BMP", {}),
        "webp": (colours, "WEBP", {"quality": 80}),
        "webp lossless": (clear, "WEBP", {"lossless": True}),
    }
    seeds = {}
    for kind, (image, form, options) in kinds.items():
        if small or kind in {"jpeg", "png 16", "webp"}:
            buffer = io.BytesIO()
            image.save(buffer, form, **options)
            seeds[kind] = buffer.getvalue()
    return seeds


def encode_dicoms(step: int) -> dict[str, bytes]:
    """Return the real X-ray of pydicom-data, every `step`th pixel, in each transfer syntax."""
    import gdcm
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, RLELossless

    data = find_dicom("RG1_UNCR.dcm")
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = np.ascontiguousarray(dataset.pixel_array[::step, ::step])
    dataset.Rows, dataset.Columns = values.shape
    dataset.PixelData = values.tobytes()
    seeds = {"dicom": write_dicom(dataset)}
    names = {
        "dicom jpeg lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        "dicom jpeg process 14": gdcm.TransferSyntax.JPEGLosslessProcess14,
        "dicom jpeg-ls": gdcm.TransferSyntax.JPEGLSLossless,
        "dicom jpeg 2000": gdcm.TransferSyntax.JPEG2000Lossless,
        "dicom big endian": gdcm.TransferSyntax.ExplicitVRBigEndian,
        "dicom implicit": gdcm.TransferSyntax.ImplicitVRLittleEndian,
        "dicom deflated": gdcm.TransferSyntax.DeflatedExplicitVRLittleEndian,
    }
    for name, syntax in names.items():
        seeds[name] = transcode(seeds["dicom"], syntax)
    gray = (values >> 7).astype(np.uint8)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.WindowCenter, dataset.WindowWidth = 15000 >> 7, 30000 >> 7
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "JPEG", quality=95)
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    seeds["dicom jpeg"] = write_dicom(dataset)
    dataset = pydicom.dcmread(io.BytesIO(seeds["dicom"]))
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    seeds["dicom rle"] = write_dicom(dataset)
    if step > 1:
        names = {
            "palette": "OBXXXX1A",
            "ybr": "SC_ybr_full_uncompressed",
            "rgb": "color-pl",
            "jpeg 2000 rgb": "US1_J2KR",
            "voi lut": "vlut_04",
            "modality lut": "mlut_18",
        }
        seeds |= {f"dicom {kind}": find_dicom(f"{name}.dcm") for kind, name in names.items()}
    return seeds


def find_dicom(name: str) -> bytes:
    import data_store

    return (Path(data_store.__file__).parent / "data" / name).read_bytes()


def write_dicom(dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def transcode(data: bytes, syntax: int) -> bytes:
    """Return a DICOM file in another transfer syntax, by GDCM, which needs files."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        before, after = f"{folder}/before.dcm", f"{folder}/after.dcm"
        Path(before).write_bytes(data)
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(before)
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(after)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(after).read_bytes()


def collect_seeds(
    xrays: Path | None, full_size: bool = True
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return small X-rays of each kind, and some of full size if wanted."""
    files = sorted(xrays.rglob("*.jp*g")) if xrays and xrays.exists() else []
    if files:
        gray = Image.open(files[0]).convert("L")
    else:
        import pydicom

        dataset = pydicom.dcmread(io.BytesIO(find_dicom("RG1_UNCR.dcm")))
        gray = Image.fromarray(255 - (dataset.pixel_array >> 7).astype(np.uint8))
    small = gray.copy()
    small.thumbnail((400, 400))
    seeds = encode_images(small) | encode_dicoms(6)
    if not full_size:
        return seeds, {}
    full = {f"full {kind}": data for kind, data in encode_images(gray, small=False).items()}
    full |= {f"full {kind}": data for kind, data in encode_dicoms(1).items()}
    full["full dicom jpeg 2000 lossy"] = find_dicom("RG1_J2KI.dcm")
    return seeds, full


# -- damage ---------------------------------------------------------------------------------------


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


# -- reading, in a child --------------------------------------------------------------------------


def work(pickled: Path, seed: int, first: int, last: int) -> None:
    """Read the X-rays from `first` up to `last`, and print JSON lines for each."""
    from pneumonia_hf import open_xray

    seeds = pickle.loads(pickled.read_bytes())
    warnings.simplefilter("error")  # as in the test suite
    for kind, data in seeds[0].items():  # excludes imports and first allocations
        open_xray(data, name=kind)
    path = pickled.with_name(f"X-ray-{first}")
    for number in range(first, last):
        kind, done, data = damage_xray(seeds, seed, number)
        name = "xray.dcm" if kind.split()[0] == "dicom" else None
        source = data
        if number % 3 == 0:  # libtiff reads files and bytes in different ways
            path.write_bytes(data)
            source = path
        print(json.dumps({"number": number, "kind": kind, "damage": done}), flush=True)
        before, since = measure_memory(reset=True), time.process_time()
        outcome, breach = try_read(open_xray, source, name)
        seconds = time.process_time() - since
        megabytes = measure_memory() - before
        if seconds > CPU_SECONDS:
            breach = breach or f"took {seconds:.1f} s"
        if megabytes > MEGABYTES:
            breach = breach or f"took {megabytes:.0f} MB"
        result = {"outcome": outcome, "seconds": seconds, "mb": megabytes, "breach": breach}
        print(json.dumps(result), flush=True)


def try_read(open_xray: Callable, source: object, name: str | None) -> tuple[str, str | None]:
    """Return "image" or "refusal", and the breach, if any."""
    from pneumonia_hf.errors import XrayError

    try:
        found = open_xray(source, name=name)
    except XrayError as error:
        text = str(error)
        good = "\n" not in text and text.isprintable() and text.endswith(".") and len(text) <= 200
        if good and "Traceback" not in text and "site-packages" not in text:
            return "refusal", None
        return "refusal", f"said {text[:300]!r}"
    except BaseException as error:
        return "refusal", f"raised {type(error).__name__}: {error}"
    good = found.image.mode == "L" and min(found.image.size) > 0 and found.mode and found.format
    return "image", None if good else f"returned {found}"


def measure_memory(reset: bool = False) -> float:
    """Return the peak memory since the last reset, in MB; 0 on other systems than Linux."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


# -- the parent -----------------------------------------------------------------------------------


def fuzz(
    count: int,
    seed: int,
    first: int = 0,
    xrays: Path | None = None,
    keep: Path | None = None,
    only: str = "",
    full_size: bool = True,
) -> dict[str, Tally]:
    """Return the results of `count` damaged X-rays by kind; `only` is a pattern for the kinds."""
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        seeds = tuple(
            {kind: data for kind, data in pool.items() if re.search(only, kind)}
            for pool in collect_seeds(xrays, full_size)
        )
        pickled = Path(folder) / "seeds"
        pickled.write_bytes(pickle.dumps(seeds))
        number, last = first, first + count
        while number < last:
            command = [sys.executable, __file__, "--worker", str(pickled), "--seed", str(seed)]
            command += ["--first", str(number), "--count", str(last - number)]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            number = follow(child, tallies, number, last)
        for tally in tallies.values():
            for breach in tally.breaches if keep else []:
                which = int(breach.split()[1])
                kind, _, data = damage_xray(seeds, seed, which)
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{which}-{kind.replace(' ', '-')}").write_bytes(data)
    return tallies


def follow(child: subprocess.Popen, tallies: dict[str, Tally], number: int, last: int) -> int:
    """Count a child's results until it ends; return the first X-ray that it has not read."""
    started = None
    for line in read_lines(child):
        found = json.loads(line)
        if "number" in found:
            started, number = found, found["number"]
            continue
        tally = tallies.setdefault(started["kind"], Tally())
        tally.images += found["outcome"] == "image"
        tally.refusals += found["outcome"] == "refusal"
        tally.seconds = max(tally.seconds, found["seconds"])
        tally.megabytes = max(tally.megabytes, found["mb"])
        if found["breach"]:
            tally.breaches.append(describe_case(started) + found["breach"])
        started, number = None, number + 1
    hung = child.poll() is None and number < last
    if hung:
        child.kill()
    status = child.wait()
    if started is not None:
        what = f"hung for {SILENT_SECONDS:.0f} s" if hung else f"ended the process ({status})"
        tallies.setdefault(started["kind"], Tally()).breaches.append(describe_case(started) + what)
        return number + 1
    if number < last and status != 0:
        raise RuntimeError(f"the child ended with {status} outside of any X-ray")
    return number


def read_lines(child: subprocess.Popen):
    """Yield the lines of a child's output until it ends or is silent for too long."""
    rest = b""
    with child.stdout, selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while selector.select(SILENT_SECONDS):
            chunk = child.stdout.read1(65536)
            if not chunk:
                child.wait()
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines


def describe_case(started: dict) -> str:
    return f"X-ray {started['number']} ({started['kind']}; {started['damage']}) "


def summarise(tallies: dict[str, Tally]) -> str:
    """Return the results in one line."""
    every = list(tallies.values())
    breaches = sum(len(tally.breaches) for tally in every)
    images, refusals = sum(t.images for t in every), sum(t.refusals for t in every)
    return (
        f"{images + refusals} X-rays: {images} images, {refusals} refusals, "
        f"{breaches} breaches; worst {max((t.seconds for t in every), default=0):.2f} s, "
        f"{max((t.megabytes for t in every), default=0):.0f} MB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--xrays", type=Path, default=ROOT.parent / "shared" / "xrays")
    parser.add_argument("--keep", type=Path, help="folder for the X-rays of breaches")
    parser.add_argument("--only", default="", help="a pattern of the kinds to damage")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.seed, options.first, options.first + options.count)
        return 0
    tallies = fuzz(
        options.count, options.seed, options.first, options.xrays, options.keep, options.only
    )
    for kind, tally in sorted(tallies.items()):
        print(
            f"{kind:28} {Counter(images=tally.images, refusals=tally.refusals)!s:50} "
            f"{tally.seconds:5.2f} s {tally.megabytes:5.0f} MB"
        )
        for breach in tally.breaches:
            print("   breach:", breach)
    print(summarise(tallies))
    return int(any(tally.breaches for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
