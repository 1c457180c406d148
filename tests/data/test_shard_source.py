"""Parquet and WebDataset shards are streamed, from a disk or a server."""

import json
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from helpers import assert_one_sentence, call_script, draw_xray
from xray_files import (
    assert_equals_drawn,
    make_columns,
    make_parquet,
    make_tar,
    write_parquet,
)

from pneumonia_hf import read_xray
from pneumonia_hf.data import shard_source
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.sources import open_images, parse_source
from pneumonia_hf.errors import UserError, XrayError


def test_truncated_shard_is_an_error_and_a_row_without_an_image_is_an_issue(tmp_path):
    from datasets import Image as ImageFeature
    from datasets import Value

    columns = make_columns(8)
    (tmp_path / "scan.png").write_bytes(b"exists while the table is written")
    columns["image"][3] = {"bytes": None, "path": str(tmp_path / "scan.png")}
    columns["image"][5] = None
    kinds = {"image": ImageFeature(), "label": Value("string")}
    file = tmp_path / "x.parquet"
    write_parquet(file, kinds, **columns, label=["NORMAL", "PNEUMONIA"] * 4)
    (tmp_path / "scan.png").unlink()
    images = [one for _, one in open_images(load_splits(f"shards:{file}")["all"])]
    assert [isinstance(one, XrayError) for one in images] == [n in (3, 5) for n in range(8)]
    make_tar(tmp_path / "x.tar", 40)
    splits = load_splits(f"shards:{tmp_path}/x.tar")
    os.truncate(tmp_path / "x.tar", (tmp_path / "x.tar").stat().st_size * 3 // 4)
    with pytest.raises(UserError, match="cannot be read beyond row"):
        list(open_images(splits["all"]))
    with pytest.raises(UserError, match="cannot be read beyond row"):
        load_splits(f"shards:{tmp_path}/x.tar")


@pytest.fixture(params=["local", "remote"])
def shard_place(request, tmp_path):
    """The folder of some shards, and its path or URL."""
    folder = tmp_path / "shards"
    folder.mkdir()
    if request.param == "local":
        yield folder, str(folder)
        return
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_parquet_shards_are_streamed(shard_place):
    folder, place = shard_place
    (folder / "train-0.parquet").write_bytes(make_parquet(7))
    (folder / "test-0.parquet").write_bytes(make_parquet(5, seed=70))
    splits = load_splits(f"shards:{place}/train-0.parquet,{place}/test-0.parquet")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 6, "test": 4}
    assert_equals_drawn(splits["train"], 6)
    assert_equals_drawn(splits["test"], 4, seed=70)
    # Any rows in any order, as after a split by patient.
    some = splits["train"].select([4, 1, 5])
    read = [np.asarray(read_xray(image)) for _, image in open_images(some)]
    for image, n in zip(read, (4, 1, 5), strict=True):
        assert np.array_equal(image, np.asarray(draw_xray(n, ill=n % 2 == 0)))


def test_webdataset_shards_are_streamed(shard_place):
    folder, place = shard_place
    make_tar(folder / "0.tar", 8)
    make_tar(folder / "1.tar", 8, seed=8)
    splits = load_splits(f"shards:{place}/0.tar,{place}/1.tar")
    assert list(splits) == ["all"]
    assert_equals_drawn(splits["all"], 16)
    assert set(splits["all"]["patient"][:]) == {"p0", "p1", "p2", "p3"}


def test_local_shards_are_found_by_a_pattern(tmp_path):
    for name in ("train-0", "train-1", "test-0"):
        make_tar(tmp_path / f"{name}.tar", 4)
    splits = load_splits(f"shards:{tmp_path}/*.tar")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 8, "test": 4}
    make_tar(tmp_path / "more.tar", 4)
    with pytest.raises(UserError, match="name their split and some do not"):
        load_splits(f"shards:{tmp_path}/*.tar")


def test_change_of_any_shard_is_noticed(tmp_path):
    files = [tmp_path / name for name in ("0.tar", "1.tar")]
    for file in files:
        file.write_text("x")
    where = "|".join(map(str, files))
    before = shard_source.stat_shards(where)
    os.utime(files[0], (1, 1))  # earlier than the other: the latest time stays
    shard_source._stat_files.cache_clear()
    assert shard_source.stat_shards(where) != before


def test_image_that_is_gone_from_its_shard_is_an_error_and_the_others_are_read(tmp_path):
    make_tar(tmp_path / "x.tar", 6)
    splits = load_splits(f"shards:{tmp_path}/x.tar")
    make_tar(tmp_path / "x.tar", 4)
    images = [image for _, image in open_images(splits["all"])]
    assert [isinstance(one, bytes) for one in images] == [True] * 4 + [False] * 2
    assert all(isinstance(one, XrayError) for one in images[4:])


@pytest.mark.slow
def test_training_and_evaluation_work_on_shards(tmp_path):
    from helpers import save_tiny_body

    for name, seed in (("train", 0), ("val", 60), ("test", 90)):
        make_tar(tmp_path / f"{name}.tar", 24, seed=seed)
    body = save_tiny_body("convnextv2-tiny", tmp_path / "body")
    flags = ["--backbone", "convnextv2-tiny", "--weights", body, "--image_size", 64]
    flags += ["--data_dir", f"X-rays=shards:{tmp_path}/*.tar", "--output_dir", tmp_path / "run"]
    flags += ["--num_train_epochs", 1, "--smallest_validation", 1, "--report_to", "none"]
    flags += ["--bootstrap_resamples", 20, "--threshold_resamples", 20, "--attribution_images", 0]
    done = call_script("train.py", *flags, "--cpu_threads", 1)
    assert done.returncode == 0, done.stderr[-2000:]
    flags = ["--model", tmp_path / "run", "--data_dir", f"X-rays=shards:{tmp_path}/*.tar"]
    flags += ["--quick"]
    done = call_script("evaluate_model.py", *flags, "--output_dir", tmp_path / "report")
    assert done.returncode == 0, done.stderr[-2000:]
    for path in (tmp_path / "run").glob("*.*"):
        if path.suffix in {".json", ".md"}:
            assert str(tmp_path.parent) not in path.read_text(), path
    assert parse_source(f"shards:{tmp_path}/x.tar").name == "shards-x.tar"
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["data"], report["split"], report["n"]) == ("X-rays", "test", 24)
    missing = call_script(
        "evaluate_model.py",
        *("--model", tmp_path / "run", "--data_dir", "shards:/nowhere/x.tar"),
        *("--output_dir", tmp_path / "other"),
    )
    assert_one_sentence(missing, "/nowhere/x.tar", "does not exist")
