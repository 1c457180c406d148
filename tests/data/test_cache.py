"""The cache holds the served bits, and leaves out what is no X-ray with its reason."""

import os

import numpy as np
import pytest
import torch
from cached_xrays import PROCESSOR, decode_in, open_store_in, start_build
from forks import end_fork
from helpers import draw_folder, draw_mask, draw_xray
from PIL import Image
from xray_files import make_tar

from pneumonia_hf import read_xray
from pneumonia_hf.data import cache
from pneumonia_hf.data.cache import decode_splits
from pneumonia_hf.data.file_hashes import hash_images
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import make_processor, normalise, to_pixel_values


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


@pytest.mark.slow
def test_two_processes_at_once_write_one_complete_store(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=60)
    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    builds = [start_build(folder, tmp_path / "cache", log) for log in logs]
    codes = [end_fork(build) for build in builds]
    outputs = [log.read_text().splitlines()[-1] for log in logs]
    assert codes == [0, 0], outputs
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("120 120 ")
