"""The store is shared by processes, survives interruptions, and is read for its key alone."""

import importlib.metadata
import os
import pickle
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from cached_xrays import PROCESSOR, decode_in, open_store_in, start_build
from forks import end_fork
from helpers import draw_folder
from torch.utils.data import DataLoader

from pneumonia_hf.data import pixel_store
from pneumonia_hf.data.image_stats import FACTS
from pneumonia_hf.data.pixel_store import PixelStore, cache_folder, cache_in
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import make_processor


def test_loader_gets_whole_batches_with_and_without_workers(data, tmp_path):
    from pneumonia_hf.training.train import take_batch

    split = decode_in(tmp_path / "cache", data).pixels
    copy = pickle.loads(pickle.dumps(split))
    assert torch.equal(copy.pixels(range(85)), split.pixels(range(85)))
    for workers in (0, 2):
        loader = DataLoader(split, batch_size=16, num_workers=workers, collate_fn=take_batch)
        batches = list(loader)
        assert torch.equal(
            torch.cat([one["pixel_values"] for one in batches]), split.pixels(range(85))
        )
        assert torch.cat([one["labels"] for one in batches]).tolist() == data["label"][:]


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


def test_a_record_that_a_disk_has_lost_stands_for_no_image(data, tmp_path):
    place = tmp_path / "cache"
    good = decode_in(place, data).pixels.pixels(range(85)).clone()
    (store,) = place.rglob("facts.bin")
    store.write_bytes(bytes(FACTS.itemsize) + store.read_bytes()[FACTS.itemsize :])
    for path in place.rglob("hashes.sqlite*"):
        path.unlink()
    assert torch.equal(decode_in(place, data).pixels.pixels(range(85)), good)


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
    whole, log = tmp_path / "whole.log", tmp_path / "log"
    assert end_fork(start_build(folder, tmp_path / "whole", whole)) == 0
    expected = whole.read_text().splitlines()[-1]
    assert expected.startswith("200 200 ")
    place = tmp_path / "cache"
    kept = []
    for write in (1, 2, 4):  # pixels, records, records of the second chunk
        build = start_build(folder, place, log, KILLED, KILL_AT=str(write))
        assert end_fork(build) == -signal.SIGKILL
        sizes = [path.stat().st_size for path in place.glob("*/facts.bin")]
        kept.append(sum(sizes) // FACTS.itemsize)
    # Complete images are kept, also those of half a chunk of records.
    assert kept == [0, 32, 96]
    assert end_fork(start_build(folder, place, log)) == 0
    assert log.read_text().splitlines()[-1] == expected


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
