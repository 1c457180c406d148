"""Sources are parsed from their names, and several make one dataset."""

import pytest
from helpers import draw_folder

from pneumonia_hf.data.load import DataConfig, load_splits, load_xrays
from pneumonia_hf.data.sources import SOURCES, parse_source
from pneumonia_hf.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("some/folder", ("folder", "folder", "some/folder")),
        ("nih=some/folder", ("nih", "folder", "some/folder")),
        ("hub:me/xrays@v2", ("hub-me-xrays", "hub", "me/xrays@v2")),
        ("a=hub:me/xrays", ("a", "hub", "me/xrays")),
        ("hub:me/xrays:small@v2", ("hub-me-xrays-small", "hub", "me/xrays:small@v2")),
        ("medmnist:224", ("medmnist-224", "medmnist", "224")),
        ("one_vs_rest:some/folder", ("folder", "one_vs_rest", "some/folder")),
        ("far=shards:https://x.org/train-*.tar", ("far", "shards", "https://x.org/train-*.tar")),
        ("C:\\xrays", (None, "folder", "C:\\xrays")),
    ],
)
def test_source_is_parsed_into_name_kind_and_place(text, expected):
    source = parse_source(text)
    name, kind, where = expected
    assert (source.kind, source.where) == (kind, where)
    assert name is None or source.name == name


def test_folder_whose_name_looks_like_a_source_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "hub:xrays", patients=2)
    draw_folder(tmp_path / "a=b", patients=2)
    assert len(load_splits("hub:xrays")["all"]) == len(load_splits("a=b")["all"]) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp:place", "Unknown kind of source 'ftp'"),
        ("hub:", "names no data"),
        ("medmnist:33", "no size '33'"),
        ("shards:/nowhere/*.parquet", "no such file"),
        ("shards:/nowhere/x.parquet", "does not exist"),
        ("shards:/nowhere/x.zip", ".zip"),
    ],
)
def test_invalid_source_is_refused_in_one_sentence(text, words):
    with pytest.raises(UserError, match=words):
        load_splits(text)


def test_several_sites_make_one_dataset_with_unique_patients(tmp_path, caplog):
    one = draw_folder(tmp_path / "one", patients=10)
    for number, split in enumerate(("train", "test")):
        draw_folder(tmp_path / "two" / split, patients=10, seed=7 + number)
    splits = load_xrays(DataConfig([f"a={one}", f"b={tmp_path / 'two'}"]))
    assert sum(len(split) for split in splits.values()) == 20 + 40
    for split in splits.values():
        assert set(split["source"][:]) == {"a", "b"}
        assert set(split["label"][:]) == {0, 1}
        for row in split:
            assert row["patient"].startswith(f"{row['source']}:")
            assert row["file"].startswith(f"{row['source']}:")
    patients = [set(split["patient"][:]) for split in splits.values()]
    assert not patients[0] & patients[1] and not patients[0] & patients[2]


def test_source_with_one_class_is_accepted_only_beside_others(tmp_path, caplog):
    both = draw_folder(tmp_path / "both", patients=10)
    only = draw_folder(tmp_path / "only", patients=20)
    for path in (only / "NORMAL").iterdir():
        path.unlink()
    (only / "NORMAL").rmdir()
    with pytest.raises(UserError, match="no NORMAL folder"):
        load_splits(only)
    splits = load_xrays(DataConfig([str(both), str(only)]))
    assert "the source determines the class" in caplog.text
    assert sum(len(split) for split in splits.values()) == 40
    with pytest.raises(UserError, match="Two sources are called 'both'"):
        load_splits([str(both), str(both)])


def test_every_kind_of_source_is_tested_here():
    assert set(SOURCES) == {"folder", "one_vs_rest", "hub", "medmnist", "shards"}
