"""Hashes of files that did not change are known without reading them."""

import sqlite3

import numpy as np
import pytest
from cached_xrays import decode_in, settle
from xray_files import make_tar

from pneumonia_hf.data.file_hashes import to_hex
from pneumonia_hf.data.load import load_splits


def test_unchanged_shards_are_not_streamed_again(tmp_path, monkeypatch):
    from pneumonia_hf.data import shard_source

    make_tar(tmp_path / "x.tar", 8)
    settle(tmp_path)
    data = load_splits(f"shards:{tmp_path}/x.tar")["all"]
    first = decode_in(tmp_path / "cache", data).pixels
    stream, streams = shard_source.stream_files, []
    monkeypatch.setattr(shard_source, "stream_files", lambda *a: streams.append(a) or stream(*a))
    again = decode_in(tmp_path / "cache", data).pixels
    assert np.array_equal(first.rows, again.rows) and not streams
    make_tar(tmp_path / "x.tar", 8, seed=50)
    shard_source._stat_files.cache_clear()  # valid for a minute
    other = decode_in(tmp_path / "cache", data).pixels
    assert streams and not set(first.hashes.tolist()) & set(other.hashes.tolist())


def test_damaged_hash_cache_is_ignored_closed_and_made_anew(data, tmp_path, monkeypatch):
    place, connect, opened = tmp_path / "cache", sqlite3.connect, []
    first = decode_in(place, data).pixels
    (place / "hashes.sqlite").write_bytes(b"not a database" * 100)

    def note(*arguments, **options):
        opened.append(connect(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", note)
    again = decode_in(place, data).pixels
    assert np.array_equal(first.rows, again.rows)
    assert opened
    for base in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            base.execute("SELECT 1")
    assert (place / "hashes.sqlite").read_bytes().startswith(b"SQLite format 3")


def test_hashes_survive_hexadecimal(data):
    hashes = np.array([0, 1, 2**64 - 1, 81985529216486895], dtype=np.uint64)
    assert to_hex(hashes)[3] == "0123456789abcdef"
    assert [int(text, 16) for text in to_hex(hashes)] == hashes.tolist()
