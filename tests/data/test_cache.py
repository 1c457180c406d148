"""Decoded once: the same bits as served, shared by processes, and never half of an image."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, draw_folder, draw_xray
from PIL import Image
from torch.utils.data import DataLoader

from pneumonia_hf import read_xray
from pneumonia_hf.data import cache
from pneumonia_hf.data import file_hashes as hashes
from pneumonia_hf.data import pixel_store as store
from pneumonia_hf.data.cache import decode, decode_splits
from pneumonia_hf.data.file_hashes import from_hex, hash_images, to_hex
from pneumonia_hf.data.image_stats import FACTS
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.pixel_store import open_store
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import make_processor, normalise, to_pixel_values

PROCESSOR = make_processor(32, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def data(tmp_path):
    """Drawn images of several sizes, old enough that their times are settled."""
    folder = draw_folder(tmp_path / "data", patients=40)
    for number in range(5):
        size = (50 + 9 * number, 80)
        draw_xray(number, True, size).save(folder / "NORMAL" / f"IM-9{number}-0.png")
    settle(folder)
    return load_splits(folder)["all"]


def settle(folder) -> None:
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    hashes.HashCache.SETTLED = -3600.0  # the change time cannot be set back


@pytest.fixture(autouse=True)
def restore():
    before = hashes.HashCache.SETTLED
    yield
    hashes.HashCache.SETTLED = before


def test_cached_images_are_the_bits_that_are_served(data, tmp_path):
    split = decode(data, PROCESSOR, cache_dir=tmp_path / "cache").pixels
    assert len(split) == len(data) == 85
    assert split.labels.tolist() == data["label"][:]
    images = [read_xray(source) for _, source in open_images(data)]
    served = to_pixel_values(images, PROCESSOR)
    cached = normalise(split.pixels(range(len(split))), PROCESSOR)
    assert torch.equal(served, cached)


def test_a_second_reading_opens_no_image(data, tmp_path, monkeypatch):
    first = decode(data, PROCESSOR, cache_dir=tmp_path / "cache").pixels

    def refuse(*_, **__):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(cache, "read_xray", refuse)
    monkeypatch.setattr(cache.Path, "read_bytes", refuse)
    again = decode(data, PROCESSOR, cache_dir=tmp_path / "cache").pixels
    assert torch.equal(first.pixels(range(85)), again.pixels(range(85)))
    assert np.array_equal(first.hashes, again.hashes)
    assert np.array_equal(hash_images(data, tmp_path / "cache"), first.hashes)


def test_shards_that_did_not_change_are_not_streamed_again(tmp_path, monkeypatch):
    from test_sources import make_tar

    from pneumonia_hf.data import shard_source

    make_tar(tmp_path / "x.tar", 8)
    settle(tmp_path)
    data = load_splits(f"shards:{tmp_path}/x.tar")["all"]
    first = decode(data, PROCESSOR, cache_dir=tmp_path / "cache").pixels
    stream, streams = shard_source._stream, []
    monkeypatch.setattr(shard_source, "_stream", lambda *a: streams.append(a) or stream(*a))
    again = decode(data, PROCESSOR, cache_dir=tmp_path / "cache").pixels
    assert np.array_equal(first.rows, again.rows) and not streams
    make_tar(tmp_path / "x.tar", 8, seed=50)
    shard_source._stat_files.cache_clear()  # which otherwise looks once a minute
    other = decode(data, PROCESSOR, cache_dir=tmp_path / "cache").pixels
    assert streams and not set(first.hashes.tolist()) & set(other.hashes.tolist())


def test_batches_of_a_loader_come_whole_also_from_workers(data, tmp_path):
    from pneumonia_hf.training.train import take_batch

    split = decode(data, PROCESSOR, cache_dir=tmp_path / "cache").pixels
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


def test_another_size_or_other_contents_are_read_anew(data, tmp_path):
    place = tmp_path / "cache"
    before = decode(data, PROCESSOR, cache_dir=place).pixels
    other = decode(data, make_processor(48, (0.5,) * 3, (0.5,) * 3), cache_dir=place).pixels
    assert other.pixels([0]).shape == (1, 1, 48, 48)
    assert other.store.folder != before.store.folder
    # The scaling to floats comes after the cache.
    assert open_store(make_processor(32, (0.1,) * 3, (0.9,) * 3), place).folder == (
        before.store.folder
    )
    path = data[3]["image"]["path"]
    times = os.stat(path)
    content = Image.open(path).rotate(90, expand=True)
    content.save(path)
    os.utime(path, (times.st_atime, times.st_mtime))
    after = decode(data, PROCESSOR, cache_dir=place).pixels
    assert after.hashes[3] != before.hashes[3]
    assert not torch.equal(after.pixels([3]), before.pixels([3]))
    assert np.array_equal(np.delete(after.rows, 3), np.delete(before.rows, 3))


def test_equal_files_are_kept_once(data, tmp_path):
    folder = draw_folder(tmp_path / "twice", patients=3)
    for path in list(folder.rglob("*.png")):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    split = decode(load_splits(folder)["all"], PROCESSOR, cache_dir=tmp_path / "cache").pixels
    assert len(split) == 12 and len(set(split.rows.tolist())) == 6 == split.store.count()


def test_unreadable_files_are_listed_with_their_reasons_and_left_out(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=4)
    (folder / "NORMAL" / "IM-0001-0000.png").write_bytes(b"\x89PNG broken")
    (folder / "PNEUMONIA" / "text.jpeg").write_text("not an image")
    splits = load_splits(folder)
    found = decode(splits["all"], PROCESSOR, cache_dir=tmp_path / "cache")
    assert {one.file for one in found.issues} == {"NORMAL/IM-0001-0000.png", "PNEUMONIA/text.jpeg"}
    assert all(one.kind == "unreadable" and one.reason for one in found.issues)
    assert len(found.pixels) == 7 and len(found.kept) == 7
    assert found.pixels.labels.tolist() == [
        data["label"] for data in splits["all"].select(found.kept)
    ]
    kept, images = decode_splits(splits, PROCESSOR, tmp_path / "cache")
    assert len(kept["all"]) == len(images["all"]) == 7
    assert sum(one.kind == "unreadable" for one in kept.issues) == 2
    with pytest.raises(UserError, match=r"2 file\(s\) cannot be read.*IM-0001.*--strict"):
        decode_splits(splits, PROCESSOR, tmp_path / "cache", strict=True)


def test_what_is_seen_of_a_whole_image_is_kept_beside_it(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=2)
    white = Image.new("L", (300, 200), 255)
    white.save(folder / "NORMAL" / "white.png")
    Image.new("RGB", (90, 120), (200, 30, 30)).save(folder / "NORMAL" / "zred.png")
    split = decode(load_splits(folder)["all"], PROCESSOR, cache_dir=tmp_path / "cache").pixels
    assert split.facts("width").tolist()[:4] == [80, 80, 300, 90]
    assert split.facts("height").tolist()[:4] == [64, 64, 200, 120]
    assert split.facts("white")[2] == 1 and split.facts("black")[2] == 0
    assert split.facts("std")[2] == 0 and split.facts("mean")[2] == 255
    assert split.facts("coloured").tolist()[:4] == [0, 0, 0, 1]
    drawn = np.asarray(draw_xray(0, ill=False))
    assert split.facts("mean")[0] == pytest.approx(drawn.mean(), abs=0.01)
    assert split.facts("std")[0] == pytest.approx(drawn.std(), abs=0.01)
    assert (split.facts("border")[2] == 255).all()


def test_damage_on_the_disk_is_noticed_and_mended(data, tmp_path):
    place = tmp_path / "cache"
    split = decode(data, PROCESSOR, cache_dir=place).pixels
    good = split.pixels(range(85)).clone()
    for name, at in (("pixels.bin", 5 * 1024 + 17), ("facts.bin", 9 * FACTS.itemsize + 60)):
        with (split.store.folder / name).open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0xFF]))
    mended = decode(data, PROCESSOR, cache_dir=place).pixels
    assert torch.equal(mended.pixels(range(85)), good)
    assert mended.store.count() == 87
    assert np.array_equal(decode(data, PROCESSOR, cache_dir=place).pixels.rows, mended.rows)


@pytest.mark.parametrize("cut", ["facts.bin", "pixels.bin"])
def test_a_torn_tail_is_written_over(data, tmp_path, cut):
    place = tmp_path / "cache"
    split = decode(data, PROCESSOR, cache_dir=place).pixels
    good = split.pixels(range(85)).clone()
    path = split.store.folder / cut
    os.truncate(path, path.stat().st_size - 100)
    again = decode(data, PROCESSOR, cache_dir=place).pixels
    assert torch.equal(again.pixels(range(85)), good)
    assert again.store.count() == 85


BUILD = """
import sys
from pneumonia_hf.data.cache import decode
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.imaging.preprocess import make_processor
import hashlib, logging
data = load_splits(sys.argv[1])["all"]
split = decode(data, make_processor(32, (0.5,) * 3, (0.25,) * 3), cache_dir=sys.argv[2]).pixels
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


def test_two_processes_that_build_at_once_end_with_one_whole_store(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=60)
    builds = [start_build(folder, tmp_path / "cache") for _ in range(2)]
    summary = [build.communicate(timeout=120) for build in builds]
    assert [build.returncode for build in builds] == [0, 0], summary
    assert summary[0][0] == summary[1][0]
    assert summary[0][0].startswith("120 120 ")


# The nth write to the store puts half of its bytes down, and the process is killed.
KILLED = """
import os, signal
from pneumonia_hf.data import pixel_store as store
write, calls = store._write_at, []
def write_half(path, place, data):
    calls.append(path)
    if len(calls) == int(os.environ["KILL_AT"]):
        write(path, place, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, place, data)
store._write_at = write_half
"""


def test_a_build_that_is_killed_in_any_write_is_finished_by_the_next(tmp_path):
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
    # What was whole is kept; half of a chunk's records are whole too.
    assert kept == [0, 32, 96]
    assert start_build(folder, place).communicate(timeout=120)[0] == whole


def test_a_cache_that_is_deleted_while_it_is_in_use_is_noticed(data, tmp_path):
    place = tmp_path / "cache"
    split = decode(data, PROCESSOR, cache_dir=place).pixels
    sent = pickle.dumps(split)  # as to a worker that starts later
    before = split.pixels(range(85)).clone()
    shutil.rmtree(place)
    assert torch.equal(split.pixels(range(85)), before)  # what is mapped stays
    with pytest.raises(UserError, match="was deleted"):
        pickle.loads(sent).pixels([0])
    decode(data.select(range(84, -1, -1)), PROCESSOR, cache_dir=place)
    with pytest.raises(UserError, match="was deleted"):
        pickle.loads(sent).pixels([0])


def test_a_cache_folder_that_cannot_be_used_is_one_sentence(data, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="--cache_dir"):
        decode(data, PROCESSOR, cache_dir=tmp_path / "file" / "cache")


def test_a_spoilt_memory_of_hashes_does_no_harm(data, tmp_path):
    place = tmp_path / "cache"
    first = decode(data, PROCESSOR, cache_dir=place).pixels
    (place / "files.sqlite").write_bytes(b"no data base at all" * 100)
    again = decode(data, PROCESSOR, cache_dir=place).pixels
    assert np.array_equal(first.rows, again.rows)


def test_hashes_are_written_and_read_alike(data):
    hashes = np.array([0, 1, 2**64 - 1, 81985529216486895], dtype=np.uint64)
    assert to_hex(hashes)[3] == "0123456789abcdef"
    assert np.array_equal(from_hex(to_hex(hashes)), hashes)


def test_key_of_the_cache_covers_all_code_that_reads_images():
    import ast
    from importlib.util import find_spec

    waiting, reached = [*store.READING], set()
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        tree = ast.parse(Path(find_spec(name).origin).read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("pneumonia_hf."):
                waiting.append(node.module)
    assert reached - {"pneumonia_hf.errors"} == set(store.READING)


def test_code_of_the_cache_that_has_moved_is_an_error_and_no_stale_key(monkeypatch):
    before = store._hash_of_reading()
    store._hash_of_reading.cache_clear()
    try:
        monkeypatch.setattr(store, "READING", store.READING[:-1])
        assert store._hash_of_reading() != before
        store._hash_of_reading.cache_clear()
        monkeypatch.setattr(store, "READING", (*store.READING, "pneumonia_hf.moved_away"))
        with pytest.raises(ModuleNotFoundError):
            store._hash_of_reading()
    finally:
        store._hash_of_reading.cache_clear()
