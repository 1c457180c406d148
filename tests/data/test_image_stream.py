"""Images are streamed in order, with or without labels."""

import zipfile

import pytest
from xray_files import make_parquet, make_tar

from pneumonia_hf.data.dataset_rows import to_bytes
from pneumonia_hf.data.image_stream import identify_stream, stream_images
from pneumonia_hf.data.shard_source import _stat_files as stat_of_minute
from pneumonia_hf.errors import UserError


def test_shards_are_streamed_split_after_split(tmp_path):
    import pyarrow.parquet as pq

    for name, count in (("train-0", 3), ("test-0", 2)):
        (tmp_path / f"{name}.parquet").write_bytes(make_parquet(count))
    table = pq.read_table(tmp_path / "train-0.parquet")
    kept = [name for name in table.column_names if name != "label"]
    pq.write_table(table.select(kept), tmp_path / "plain.parquet")
    found = list(stream_images(f"shards:{tmp_path}/*-0.parquet"))
    assert [name.partition("/")[0] for name, _ in found] == ["test"] * 2 + ["train"] * 3
    assert all(isinstance(content, bytes) for _, content in found)
    names = [
        name.replace("all/", "train/")
        for name, _ in stream_images(f"shards:{tmp_path}/plain.parquet")
    ]
    assert names == [name for name, _ in found[2:]] and len(set(names)) == 3
    make_tar(tmp_path / "x.tar", 4)
    assert len({name for name, _ in stream_images(f"shards:{tmp_path}/x.tar")}) == 4


def test_a_table_without_images_is_one_sentence(tmp_path):
    import pyarrow
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.table({"age": [3]}), tmp_path / "ages.parquet")
    with pytest.raises(UserError, match=r"has no image column \(it has age\)"):
        list(stream_images(f"shards:{tmp_path}/ages.parquet"))


def test_a_stream_is_another_one_once_a_shard_is_added_or_written_anew(tmp_path, monkeypatch):
    source = f"shards:{tmp_path}/*.parquet"
    (tmp_path / "b.parquet").write_bytes(make_parquet(2))
    known = {identify_stream(source)}
    assert known == {identify_stream(source)}
    (tmp_path / "a.parquet").write_bytes(make_parquet(2))
    known.add(identify_stream(source))
    (tmp_path / "b.parquet").write_bytes(make_parquet(3))
    stat_of_minute.cache_clear()  # sizes are kept for a minute
    known.add(identify_stream(source))
    assert len(known) == 3
    # A server that states neither size nor time.
    monkeypatch.setattr("pneumonia_hf.data.image_stream.stat_shards", lambda _: None)
    known = {identify_stream(source)}
    (tmp_path / "c.parquet").write_bytes(make_parquet(2))
    assert identify_stream(source) not in known


def test_an_image_within_a_zip_file_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("train/a.png", b"content")
    inside = {"path": f"zip://train/a.png::{tmp_path}/x.zip", "bytes": None}
    assert to_bytes(inside) == b"content"
    assert "only a path" in str(to_bytes({"path": str(tmp_path / "gone.png"), "bytes": None}))
