"""The cache holds the served bits, is shared by processes, and survives interruptions."""

import importlib.metadata
import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from helpers import ROOT, draw_folder, draw_mask, draw_xray
from PIL import Image
from torch.utils.data import DataLoader
from xray_files import make_tar

from pneumonia_hf import read_xray
from pneumonia_hf.data import cache, pixel_store
from pneumonia_hf.data.cache import decode, decode_splits
from pneumonia_hf.data.file_hashes import HashCache, from_hex, hash_images, to_hex
from pneumonia_hf.data.image_stats import FACTS
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.pixel_store import PixelStore, cache_folder, cache_in, open_store
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import make_processor, normalise, to_pixel_values

PROCESSOR = make_processor(32, (0.5,) * 3, (0.25,) * 3)


def decode_in(place, data, processor=PROCESSOR):
    with cache_in(place):
        return decode(data, processor)


def open_store_in(place, processor=PROCESSOR):
    with cache_in(place):
        return open_store(processor)


@pytest.fixture
def data(tmp_path):
    """Drawn images of several sizes, old enough for the hash cache."""
    folder = draw_folder(tmp_path / "data", patients=40)
    for number in range(5):
        size = (50 + 9 * number, 80)
        draw_xray(number, True, size).save(folder / "NORMAL" / f"IM-9{number}-0.png")
    settle(folder)
    return load_splits(folder)["all"]


def settle(folder) -> None:
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    HashCache.SETTLED = -3600.0  # the time of status change cannot be set


@pytest.fixture(autouse=True)
def restore():
    before = HashCache.SETTLED
    yield
    HashCache.SETTLED = before


def test_cached_images_equal_the_served_ones_bit_for_bit(data, tmp_path):
    split = decode_in(tmp_path / "cache", data).pixels
    assert len(split) == len(data) == 85
    assert split.labels.tolist() == data["label"][:]
    images = [read_xray(source) for _, source in open_images(data)]
    served = to_pixel_values(images, PROCESSOR)
    cached = normalise(split.pixels(range(len(split))), PROCESSOR)
    assert torch.equal(served, cached)


def test_second_decode_opens_no_image(data, tmp_path, monkeypatch):
    first = decode_in(tmp_path / "cache", data).pixels

    def refuse(*_, **__):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(cache, "open_xray", refuse)
    monkeypatch.setattr(cache.Path, "read_bytes", refuse)
    again = decode_in(tmp_path / "cache", data).pixels
    assert torch.equal(first.pixels(range(85)), again.pixels(range(85)))
    assert np.array_equal(first.hashes, again.hashes)
    with cache_in(tmp_path / "cache"):
        assert np.array_equal(hash_images(data), first.hashes)


def test_unchanged_shards_are_not_streamed_again(tmp_path, monkeypatch):
    from pneumonia_hf.data import shard_source

    make_tar(tmp_path / "x.tar", 8)
    settle(tmp_path)
    data = load_splits(f"shards:{tmp_path}/x.tar")["all"]
    first = decode_in(tmp_path / "cache", data).pixels
    stream, streams = shard_source._stream, []
    monkeypatch.setattr(shard_source, "_stream", lambda *a: streams.append(a) or stream(*a))
    again = decode_in(tmp_path / "cache", data).pixels
    assert np.array_equal(first.rows, again.rows) and not streams
    make_tar(tmp_path / "x.tar", 8, seed=50)
    shard_source._stat_files.cache_clear()  # valid for a minute
    other = decode_in(tmp_path / "cache", data).pixels
    assert streams and not set(first.hashes.tolist()) & set(other.hashes.tolist())


def test_loader_gets_whole_batches_with_and_without_workers(data, tmp_path):
    from pneumonia_hf.training.train import take_batch

    split = decode_in(tmp_path / "cache", data).pixels
    one = split[7]
    assert torch.equal(one["pixel_values"], split.pixels([7])[0])
    assert one["labels"] == data["label"][7]
    copy = pickle.loads(pickle.dumps(split))
    assert torch.equal(copy.pixels(range(85)), split.pixels(range(85)))
    for workers in (0, 2):
        loader = DataLoader(split, batch_size=16, num_workers=workers, collate_fn=take_batch)
        batches = list(loader)
        assert torch.equal(
            torch.cat([one["pixel_values"] for one in batches]), split.pixels(range(85))
        )
        assert torch.cat([one["labels"] for one in batches]).tolist() == data["label"][:]


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_masks_are_left_out_of_every_source_with_an_issue(tmp_path, monkeypatch, kind):
    if kind == "folder":
        source = folder = draw_folder(tmp_path / "data", patients=4)
        draw_mask(0).save(folder / "PNEUMONIA" / "person9_virus_0.png")
        draw_mask(1).save(folder / "NORMAL" / "IM-9-0.jpg", quality=75)
        expected = ["NORMAL/IM-9-0.jpg", "PNEUMONIA/person9_virus_0.png"]
    else:
        masks = {n: draw_mask(n) for n in (2, 5)}
        monkeypatch.setattr("xray_files.draw_xray", lambda n, ill: masks.get(n, draw_xray(n, ill)))
        make_tar(tmp_path / "x.tar", 10)
        source, expected = f"shards:{tmp_path}/x.tar", ["xray0002", "xray0005"]
    splits, images = decode_splits(load_splits(source), PROCESSOR)
    assert len(splits["all"]) == len(images["all"]) == 8
    found = [one for one in splits.issues if one.kind == "mask"]
    assert sorted(one.file for one in found) == expected
    assert {one.reason for one in found} == {"it has only two gray levels"}
    with pytest.raises(UserError, match=r"2 file\(s\) are masks and not X-rays.*--strict"):
        decode_splits(load_splits(source), PROCESSOR, strict=True)


def test_another_size_or_new_contents_are_decoded_again(data, tmp_path):
    place = tmp_path / "cache"
    before = decode_in(place, data).pixels
    other = decode_in(place, data, make_processor(48, (0.5,) * 3, (0.5,) * 3)).pixels
    assert other.pixels([0]).shape == (1, 1, 48, 48)
    assert other.store.folder != before.store.folder
    # Normalisation follows the cache.
    assert open_store_in(place, make_processor(32, (0.1,) * 3, (0.9,) * 3)).folder == (
        before.store.folder
    )
    path = data[3]["image"]["path"]
    times = os.stat(path)
    content = Image.open(path).rotate(90, expand=True)
    content.save(path)
    os.utime(path, (times.st_atime, times.st_mtime))
    after = decode_in(place, data).pixels
    assert after.hashes[3] != before.hashes[3]
    assert not torch.equal(after.pixels([3]), before.pixels([3]))
    assert np.array_equal(np.delete(after.rows, 3), np.delete(before.rows, 3))


def test_identical_files_are_stored_once(data, tmp_path):
    folder = draw_folder(tmp_path / "twice", patients=3)
    for path in list(folder.rglob("*.png")):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    split = decode_in(tmp_path / "cache", load_splits(folder)["all"]).pixels
    assert len(split) == 12 and len(set(split.rows.tolist())) == 6 == split.store.count()


def test_unreadable_files_are_left_out_and_reported(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=4)
    (folder / "NORMAL" / "IM-0001-0000.png").write_bytes(b"\x89PNG broken")
    (folder / "PNEUMONIA" / "text.jpeg").write_text("not an image")
    splits = load_splits(folder)
    found = decode_in(tmp_path / "cache", splits["all"])
    assert {one.file for one in found.issues} == {"NORMAL/IM-0001-0000.png", "PNEUMONIA/text.jpeg"}
    assert all(one.kind == "unreadable" and one.reason for one in found.issues)
    assert len(found.pixels) == 7 and len(found.kept) == 7
    assert found.pixels.labels.tolist() == [
        data["label"] for data in splits["all"].select(found.kept)
    ]
    kept, images = decode_splits(splits, PROCESSOR)
    assert len(kept["all"]) == len(images["all"]) == 7
    assert sum(one.kind == "unreadable" for one in kept.issues) == 2
    with pytest.raises(UserError, match=r"2 file\(s\) cannot be read.*IM-0001.*--strict"):
        decode_splits(splits, PROCESSOR, strict=True)


def test_facts_describe_the_full_size_image(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=2)
    white = Image.new("L", (300, 200), 255)
    white.save(folder / "NORMAL" / "white.png")
    Image.new("RGB", (90, 120), (200, 30, 30)).save(folder / "NORMAL" / "zred.png")
    split = decode_in(tmp_path / "cache", load_splits(folder)["all"]).pixels
    assert split.facts("width").tolist()[:4] == [80, 80, 300, 90]
    assert split.facts("height").tolist()[:4] == [64, 64, 200, 120]
    assert split.facts("white")[2] == 1 and split.facts("black")[2] == 0
    assert split.facts("std")[2] == 0 and split.facts("mean")[2] == 255
    assert split.facts("coloured").tolist()[:4] == [0, 0, 0, 1]
    drawn = np.asarray(draw_xray(0, ill=False))
    assert split.facts("mean")[0] == pytest.approx(drawn.mean(), abs=0.01)
    assert split.facts("std")[0] == pytest.approx(drawn.std(), abs=0.01)
    assert (split.facts("border")[2] == 255).all()


def test_damage_on_the_disk_is_detected_and_repaired(data, tmp_path):
    place = tmp_path / "cache"
    split = decode_in(place, data).pixels
    good = split.pixels(range(85)).clone()
    for name, at in (("pixels.bin", 5 * 1024 + 17), ("facts.bin", 9 * FACTS.itemsize + 60)):
        with (split.store.folder / name).open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0xFF]))
    repaired = decode_in(place, data).pixels
    assert torch.equal(repaired.pixels(range(85)), good)
    assert repaired.store.count() == 87
    assert np.array_equal(decode_in(place, data).pixels.rows, repaired.rows)


@pytest.mark.parametrize("file", ["facts.bin", "pixels.bin"])
def test_truncated_file_is_completed(data, tmp_path, file):
    place = tmp_path / "cache"
    split = decode_in(place, data).pixels
    good = split.pixels(range(85)).clone()
    path = split.store.folder / file
    os.truncate(path, path.stat().st_size - 100)
    again = decode_in(place, data).pixels
    assert torch.equal(again.pixels(range(85)), good)
    assert again.store.count() == 85


BUILD = """
import sys
from pneumonia_hf.data.cache import decode
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.imaging.preprocess import make_processor
import hashlib, logging
data = load_splits(sys.argv[1])["all"]
with cache_in(sys.argv[2]):
    split = decode(data, make_processor(32, (0.5,) * 3, (0.25,) * 3)).pixels
pixels = split.pixels(range(len(split))).numpy()
print(len(split), split.store.count(), hashlib.sha256(pixels).hexdigest())
"""


def start_build(folder, place) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_two_processes_at_once_write_one_complete_store(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=60)
    builds = [start_build(folder, tmp_path / "cache") for _ in range(2)]
    outputs = [build.communicate(timeout=120) for build in builds]
    assert [build.returncode for build in builds] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][0].startswith("120 120 ")


def test_two_writers_at_once_write_one_complete_store(data, tmp_path, monkeypatch):
    barrier, lock = Barrier(2), PixelStore.lock

    def wait_and_lock(store):
        barrier.wait(timeout=60)  # both have looked up the images and found none
        return lock(store)

    monkeypatch.setattr(PixelStore, "lock", wait_and_lock)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(decode_in, tmp_path / "cache", data) for _ in range(2)]
        one, other = (call.result().pixels for call in calls)
    assert one.store.count() == 85
    assert np.array_equal(one.rows, other.rows)


# The process is killed after half of the nth write to the store.
KILLED = """
import os, signal
from pneumonia_hf.data import pixel_store
write, calls = pixel_store._write_at, []
def write_half(path, place, data):
    calls.append(path)
    if len(calls) == int(os.environ["KILL_AT"]):
        write(path, place, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, place, data)
pixel_store._write_at = write_half
"""


@pytest.mark.slow
def test_killed_process_is_completed_by_the_next(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=100)
    whole = start_build(folder, tmp_path / "whole").communicate(timeout=120)[0]
    assert whole.startswith("200 200 ")
    place = tmp_path / "cache"
    kept = []
    for write in (1, 2, 4):  # pixels, records, records of the second chunk
        build = subprocess.run(
            [sys.executable, "-c", KILLED + BUILD, str(folder), str(place)],
            capture_output=True,
            cwd=ROOT,
            env=os.environ | {"KILL_AT": str(write), "OMP_NUM_THREADS": "1"},
            timeout=120,
        )
        assert build.returncode == -signal.SIGKILL
        sizes = [path.stat().st_size for path in place.glob("*/facts.bin")]
        kept.append(sum(sizes) // FACTS.itemsize)
    # Complete images are kept, also those of half a chunk of records.
    assert kept == [0, 32, 96]
    assert start_build(folder, place).communicate(timeout=120)[0] == whole


def test_cache_that_is_deleted_while_in_use_is_an_error(data, tmp_path):
    place = tmp_path / "cache"
    split = decode_in(place, data).pixels
    sent = pickle.dumps(split)  # as to a worker that starts later
    before = split.pixels(range(85)).clone()
    shutil.rmtree(place)
    assert torch.equal(split.pixels(range(85)), before)  # the mapped file stays
    with pytest.raises(UserError, match="was deleted"):
        pickle.loads(sent).pixels([0])
    decode_in(place, data.select(range(84, -1, -1)))
    with pytest.raises(UserError, match="was deleted"):
        pickle.loads(sent).pixels([0])


def test_unusable_cache_folder_is_refused_in_one_sentence(data, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="--cache_dir"):
        decode_in(tmp_path / "file" / "cache", data)


def test_cache_lies_where_the_innermost_choice_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMONIA_HF_CACHE", str(tmp_path / "variable"))
    assert cache_folder() == tmp_path / "variable"
    with cache_in(tmp_path / "outer"):
        assert cache_folder() == tmp_path / "outer"
        with cache_in(None):
            assert cache_folder() == tmp_path / "outer"
        with suppress(ValueError), cache_in(tmp_path / "inner"):
            assert cache_folder() == tmp_path / "inner"
            raise ValueError
        assert cache_folder() == tmp_path / "outer"
    assert cache_folder() == tmp_path / "variable"


def test_damaged_hash_cache_is_ignored(data, tmp_path):
    place = tmp_path / "cache"
    first = decode_in(place, data).pixels
    (place / "files.sqlite").write_bytes(b"not a database" * 100)
    again = decode_in(place, data).pixels
    assert np.array_equal(first.rows, again.rows)


def test_hashes_survive_hexadecimal(data):
    hashes = np.array([0, 1, 2**64 - 1, 81985529216486895], dtype=np.uint64)
    assert to_hex(hashes)[3] == "0123456789abcdef"
    assert np.array_equal(from_hex(to_hex(hashes)), hashes)


def test_cache_key_covers_all_code_that_decodes_images():
    import ast
    from importlib.util import find_spec

    waiting, reached = [*pixel_store.READING], set()
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        tree = ast.parse(Path(find_spec(name).origin).read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("pneumonia_hf."):
                waiting.append(node.module)
    # Errors, warnings and file locks do not change a pixel.
    unimportant = {f"pneumonia_hf.{name}" for name in ("errors", "reasons", "files")}
    assert reached - unimportant == set(pixel_store.READING)


@pytest.mark.slow
def test_cache_key_covers_all_packages_that_decode_images():
    import ast
    from importlib.metadata import packages_distributions
    from importlib.util import find_spec

    names = set()
    for module in pixel_store.READING:
        for node in ast.walk(ast.parse(Path(find_spec(module).origin).read_bytes())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                names |= {one.name.partition(".")[0] for one in node.names}
    names -= {*sys.stdlib_module_names, "pneumonia_hf"}
    packages = {packages_distributions()[name][0] for name in names}
    # torchvision resizes for transformers' processors.
    assert packages | {"torchvision"} == set(pixel_store.PACKAGES)


@pytest.mark.parametrize("package", pixel_store.PACKAGES)
def test_cache_of_another_version_of_a_package_is_not_read(tmp_path, package, monkeypatch):
    version = importlib.metadata.version
    before = open_store_in(tmp_path).folder
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: version(name) + "x" * (name == package)
    )
    pixel_store._hash_of_reading.cache_clear()
    try:
        assert open_store_in(tmp_path).folder != before
    finally:
        pixel_store._hash_of_reading.cache_clear()


def test_cache_of_another_kind_of_processor_is_not_read(tmp_path):
    class OtherProcessor(type(PROCESSOR)):
        pass

    others = [OtherProcessor(**PROCESSOR.to_dict()), make_processor(32, (0.5,) * 3, (0.25,) * 3)]
    others[1].do_center_crop = True
    folders = {open_store_in(tmp_path, one).folder for one in (PROCESSOR, *others)}
    assert len(folders) == 3


def test_missing_module_of_the_cache_key_is_an_error(monkeypatch):
    before = pixel_store._hash_of_reading()
    pixel_store._hash_of_reading.cache_clear()
    try:
        monkeypatch.setattr(pixel_store, "READING", pixel_store.READING[:-1])
        assert pixel_store._hash_of_reading() != before
        pixel_store._hash_of_reading.cache_clear()
        monkeypatch.setattr(
            pixel_store, "READING", (*pixel_store.READING, "pneumonia_hf.moved_away")
        )
        with pytest.raises(ModuleNotFoundError):
            pixel_store._hash_of_reading()
    finally:
        pixel_store._hash_of_reading.cache_clear()
