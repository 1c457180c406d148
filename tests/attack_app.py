"""Send hostile files to a running app: each must get an answer or a clean error.

    python tests/attack_app.py --url http://127.0.0.1:7860 [--count 500] [--seed 13]

Damaged X-rays of all formats, decompression bombs, wrong extensions, empty and huge files, names
like paths, SVG and HTML with scripts, and zip files that climb out of their folder, explode or are
torn. After every 50 files a good X-ray must still be scored.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

from damages import damage_xray
from xray_kinds import encode_images

GOOD_EVERY = 50
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>fetch("http://127.0.0.1:9")</script></svg>'
HTML = b"<html><script>alert(1)</script><img src=x onerror=alert(1)></html>"


def make_png_header(width: int, height: int) -> bytes:
    """Return a PNG that states a size, and holds nearly nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        code = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", code)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    )


def make_zip(entries: dict[str, bytes]) -> bytes:
    """Return a zip file with entries of any name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def list_attacks(good: bytes) -> dict[str, tuple[str, bytes]]:
    """Return file name and content of each attack that is no damaged image."""
    zeros = b"\0" * 50_000_000
    whole = make_zip({"a.png": good, "b.png": good})
    return {
        "bomb png": ("bomb.png", make_png_header(60_000, 60_000)),
        "tall png": ("tall.png", make_png_header(1, 2**31 - 1)),
        "svg": ("image.svg", SVG),
        "svg as png": ("image.png", SVG),
        "html as jpeg": ("image.jpeg", HTML),
        "html": ("page.html", HTML),
        "empty": ("empty.png", b""),
        "huge": ("huge.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 60_000_000),
        "name like a path": ("..%2f..%2fetc%2fpasswd.png", b"x"),
        "name with a script": ("<img src=x onerror=alert(1)>.png", b"x"),
        "long name": ("x" * 180 + ".png", good[:200]),
        "dicom header alone": ("x.dcm", b"\0" * 128 + b"DICM"),
        "program": ("run.png", b"\x7fELF" + b"\0" * 1000),
        "pickle": ("model.png", b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."),
        "zip slip": (
            "slip.zip",
            make_zip({"../../../tmp/owned.png": good, "/etc/owned.png": b"x"}),
        ),
        "zip bomb": ("bomb.zip", make_zip({f"{n}.png": zeros for n in range(9)})),
        "zip of zip": ("deep.zip", make_zip({"inner.zip": whole, "a.png": b"x"})),
        "torn zip": ("torn.zip", whole[: len(whole) // 2]),
        "zip of many": ("many.zip", make_zip({f"{n}.png": b"x" for n in range(3000)})),
        "zip of links": ("odd.zip", make_zip({"a.png": b"/etc/passwd", "dir/": b""})),
    }


def attack(url: str, count: int, seed: int, report: Callable[[str], None] = print) -> list[str]:
    """Send `count` hostile files, and return what went wrong, a sentence each."""
    generator = np.random.default_rng(seed)
    pixels = generator.normal(110, 40, (240, 300)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    good = buffer.getvalue()
    seeds = encode_images(image), {}
    attacks = list(list_attacks(good).items())
    faults, results = [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "good.png").write_bytes(good)
        client = Client(url, verbose=False, download_files=folder)
        expected = client.predict(handle_file(place / "good.png"), api_name="/predict")[0]
        for number in range(count):
            if number < len(attacks):
                kind, (name, content) = attacks[number]
            else:
                kind, _, content = damage_xray(seeds, seed, number)
                name = f"case{number}.{kind.split()[0].replace('dicom', 'dcm')}"
            file = place / name
            file.write_bytes(content)
            batch = name.endswith(".zip") or number % 5 == 0
            endpoint = "/predict_batch" if batch else "/predict"
            given = [handle_file(file)] if batch else handle_file(file)
            try:
                client.predict(given, api_name=endpoint)
                results["answered"] += 1
            except Exception as error:
                text = str(error)
                results["refused"] += 1
                if not text.strip() or "Traceback" in text or "upstream" in text:
                    faults.append(
                        f"{kind} ({name[:40]}) got {type(error).__name__}: {text[:200]!r}"
                    )
            file.unlink()
            if number % GOOD_EVERY == GOOD_EVERY - 1:
                found = client.predict(handle_file(place / "good.png"), api_name="/predict")[0]
                if found != expected:
                    faults.append(f"after {number + 1} files a good X-ray is scored {found}")
                report(f"{number + 1} files: {dict(results)}, {len(faults)} faults")
        client.close()
    for trace in ("/tmp/owned", "/tmp/owned.png", "/etc/owned.png"):
        if Path(trace).exists():
            faults.append(f"{trace} was written")
    return faults


def main() -> int:
    """Attack the app at a URL."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=13)
    options = parser.parse_args()
    faults = attack(options.url, options.count, options.seed)
    print("\n".join(faults) or "No fault.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
