"""Read thousands of damaged X-rays: each must give an image or an XrayError, within limits.

    python tests/fuzz_xray.py --count 2000 --seed 13 [--xrays FOLDER] [--keep FOLDER]

The damage depends only on the seed and the case number: `--first N --count 1` repeats case N. A
child process reads the files; a crash or a hang is a breach, like a wrong exception.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from damages import damage_xray
from xray_kinds import collect_seeds

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CPU_SECONDS, MEGABYTES, SILENT_SECONDS = 2.0, 500.0, 30.0


@dataclass
class Tally:
    """The results for one kind of X-ray."""

    images: int = 0
    refusals: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0
    breaches: list[str] = field(default_factory=list)


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
