"""Every kind of source gives the same columns, and reports each file that is not used."""

import io
import json
import os
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from helpers import assert_one_sentence, call_script, draw_folder, draw_mask, draw_xray
from hub_server import LocalHub, Repository
from xray_files import encode, make_tar

from pneumonia_hf import read_xray
from pneumonia_hf.data.folder_source import list_others
from pneumonia_hf.data.issues import ISSUE_KINDS
from pneumonia_hf.data.load import DataConfig, load_splits, load_xrays
from pneumonia_hf.data.sources import SOURCES, open_images, parse_source
from pneumonia_hf.errors import UserError, XrayError


def kinds_of(splits) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in splits.issues:
        found.setdefault(one.kind, []).append(one.file)
    return found


# ---------------------------------------------------------------------------------- names


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


# ---------------------------------------------------------------------------------- folders


def test_each_file_of_a_folder_is_used_or_reported(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=3, images=2)
    for path, text in {
        "NORMAL/notes.txt": "hello",
        "NORMAL/.DS_Store": "junk",
        "PNEUMONIA/._person1_virus_0.png": "resource fork",
        "loose.png": "image beside the folders",
        "COVID/one.png": "another class",
        "Thumbs.db": "system",
        "README.md": "text",
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    splits = load_splits(folder)
    found = {kind: sorted(files) for kind, files in kinds_of(splits).items()}
    assert found == {
        "not_an_image": ["NORMAL/notes.txt", "README.md"],
        "system_file": ["NORMAL/.DS_Store", "PNEUMONIA/._person1_virus_0.png", "Thumbs.db"],
        "unknown_label": ["COVID/one.png"],
        "no_place": ["loose.png"],
    }
    everything = [path for path in folder.rglob("*") if path.is_file()]
    reported = sum(one.count for one in splits.issues)
    assert len(splits["all"]) + reported == len(everything)
    assert set(found) <= set(ISSUE_KINDS)


@pytest.mark.parametrize("masks", ["masks", "Lung_Masks", "infection mask", "segmentations"])
@pytest.mark.parametrize("inside", ["", "NORMAL", "PNEUMONIA"])
@pytest.mark.parametrize("kind", ["folder", "one_vs_rest"])
def test_folder_of_masks_beside_images_is_left_out_with_an_issue(tmp_path, kind, inside, masks):
    folder = draw_folder(tmp_path / "data", patients=2)
    images, beside = folder / inside / "Images", folder / inside / masks
    for each in (images, beside):
        each.mkdir()
    # No flat mask: the name of its folder decides, before anything is decoded.
    draw_xray(9, ill=False).save(beside / "IM-9-0.png")
    (beside / ".DS_Store").write_text("junk")
    draw_xray(8, ill=False).save(images / "IM-8-0.png")
    splits = load_splits(f"{kind}:{folder}")
    used = splits["all"]["file"][:]
    assert len(used) == 4 + (bool(inside) or kind == "one_vs_rest")
    name = beside.relative_to(folder).as_posix()
    found = [(one.kind, one.file) for one in splits.issues if masks in one.file]
    assert found == [("system_file", f"{name}/.DS_Store"), ("mask", f"{name}/IM-9-0.png")]


def test_folder_of_masks_without_images_beside_it_is_like_any_other(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=2)
    (folder / "NORMAL").rename(folder / "masks")
    (folder / "NORMAL").mkdir()
    (folder / "masks").rename(folder / "NORMAL" / "masks")
    assert len(load_splits(folder)["all"]) == 4


def test_masks_of_other_classes_are_left_out_and_logged(tmp_path, caplog):
    folder = draw_folder(tmp_path / "data", patients=2)
    for name in ("images", "masks"):
        (folder / "OTHER" / name).mkdir(parents=True)
        draw_mask(1).save(folder / "OTHER" / name / "1.png")
    found = list_others(str(folder), ["OTHER"])
    assert [one.file for one in found] == ["OTHER/images/1.png"]
    assert "OTHER/masks/1.png (its folder lies beside one of images)" in caplog.text


def test_one_vs_rest_takes_the_images_of_other_classes_as_normal(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=3)
    draw_folder(tmp_path / "more", patients=2, seed=50)
    (tmp_path / "more" / "NORMAL").rename(folder / "OTHER")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "one.png").write_bytes(b"")
    (folder / "metadata.csv").write_text(
        "file_name,label,patient_id\n"
        "OTHER/IM-0000-0000.png,Effusion,seven\n"
        "OTHER/IM-0001-0000.png,PNEUMONIA,eight\n"
        "PNEUMONIA/person0_virus_0.png,Effusion,nine\n"
    )
    assert len(load_splits(folder)["all"]) == 7  # one by its line of metadata.csv
    splits = load_splits(f"one_vs_rest:{folder}")
    label_of = dict(zip(splits["all"]["file"][:], splits["all"]["label"][:], strict=True))
    assert len(label_of) == 8 and sum(label_of.values()) == 3
    assert label_of["OTHER/IM-0000-0000.png"] == label_of["OTHER/IM-0001-0000.png"] == 0
    assert {"seven", "eight"} <= set(splits["all"]["patient"][:])
    found = kinds_of(splits)
    # Another class is a negative, but what metadata calls the other of the two is reported.
    assert sorted(found["metadata_other_label"]) == [
        "OTHER/IM-0001-0000.png",
        "PNEUMONIA/person0_virus_0.png",
    ]
    assert found["system_file"] == [".hidden/one.png"]
    assert "unknown_label" not in found


def test_one_vs_rest_reads_the_labels_of_a_flat_folder(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(3):
        draw_xray(number, ill=number == 1).save(folder / f"{number}.png")
    labels = ["NORMAL", "PNEUMONIA", "Effusion"]
    lines = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    assert load_splits(str(folder))["all"]["label"][:] == [0, 1]
    assert load_splits(f"one_vs_rest:{folder}")["all"]["label"][:] == [0, 1, 0]


def test_jpeg_files_under_other_names_are_images(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=2)
    for number, path in enumerate(sorted((folder / "NORMAL").iterdir())):
        path.write_bytes(encode(draw_xray(number, ill=False), "JPEG"))
        path.rename(path.with_suffix((".jfif", ".JPEG_large")[number]))
    assert len(load_splits(folder, strict=True)["all"]) == 4


def test_strict_refuses_unused_files_but_not_system_files(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=3)
    (folder / "NORMAL" / ".DS_Store").write_text("junk")
    assert len(load_splits(folder, strict=True)["all"]) == 6
    (folder / "NORMAL" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"1 file\(s\) .*NORMAL/notes.txt.*--strict"):
        load_splits(folder, strict=True)


def test_splits_beside_class_folders_are_refused(tmp_path):
    draw_folder(tmp_path / "data", patients=3)
    draw_folder(tmp_path / "data" / "test", patients=3)
    with pytest.raises(UserError, match="beside class folders"):
        load_splits(tmp_path / "data")


def test_files_outside_of_the_splits_are_reported(tmp_path):
    for name in ("train", "test"):
        draw_folder(tmp_path / name, patients=3)
    draw_folder(tmp_path / "chest_xray" / "train", patients=3)  # as the public archive has it
    splits = load_splits(tmp_path)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 6, "test": 6}
    assert len(kinds_of(splits)["no_place"]) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_are_not_utf_8_are_reported(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=3)
    os.rename(
        folder / "NORMAL" / "IM-0000-0000.png", os.fsencode(folder / "NORMAL") + b"/caf\xe9.png"
    )
    splits = load_splits(folder)
    assert len(splits["all"]) == 5
    assert kinds_of(splits) == {"odd_name": ["NORMAL/caf\\udce9.png"]}


def test_links_are_followed_without_cycles(tmp_path):
    folder = draw_folder(tmp_path / "store", patients=3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "normal").symlink_to(folder / "NORMAL")
    (tmp_path / "data" / "pneumonia").symlink_to(folder / "PNEUMONIA")
    (folder / "NORMAL" / "again").symlink_to(folder / "NORMAL")
    assert len(load_splits(tmp_path / "data")["all"]) == 6


# ---------------------------------------------------------------------------------- metadata


def write_metadata(folder, *lines: str) -> None:
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def draw_flat(folder, count: int = 6):
    folder.mkdir()
    for number in range(count):
        draw_xray(number, ill=number % 2 == 1).save(folder / f"{number}.png")
    return folder


def test_flat_folder_gets_its_labels_from_metadata(tmp_path):
    folder = draw_flat(tmp_path / "flat", 8)
    rows = [f"{n}.png,{('Normal', 'pneumonia')[n % 2]},p{n // 2},{20 + n}" for n in range(6)]
    write_metadata(folder, "file_name,label,patient_id,age", *rows, "6.png,covid,p9,3")
    splits = load_splits(folder)
    data = splits["all"]
    assert data["label"][:] == [0, 1] * 3
    assert data["patient"][:] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert data["age"][:] == [str(20 + n) for n in range(6)]
    found = kinds_of(splits)
    assert found["unknown_label"] == ["6.png"]
    assert found["no_place"] == ["7.png"]
    assert found["both_labels"] == ["p0", "p1", "p2"]


def test_contradictions_of_metadata_and_folders_are_reported(tmp_path, caplog):
    folder = draw_folder(tmp_path / "data", patients=3)
    write_metadata(
        folder,
        "file_name,label,patient_id",
        "NORMAL/IM-0000-0000.png,NORMAL,a",
        "NORMAL/IM-0001-0000.png,PNEUMONIA,b",
        "NORMAL/gone.png,NORMAL,c",
        "PNEUMONIA/person0_virus_0.png,pneumonia,a",
        "PNEUMONIA/person1_virus_0.png,,d",
    )
    splits = load_splits(folder)
    assert len(splits["all"]) == 6
    found = kinds_of(splits)
    assert found["metadata_missing_file"] == ["NORMAL/gone.png"]
    assert found["metadata_other_label"] == ["NORMAL/IM-0001-0000.png"]
    assert found["metadata_left_out"] == [
        "NORMAL/IM-0002-0000.png",
        "PNEUMONIA/person2_virus_0.png",
    ]
    assert found["both_labels"] == ["a"]
    for kind in found:
        assert ISSUE_KINDS[kind].title in caplog.text
    row = splits["all"]["file"][:].index("NORMAL/IM-0001-0000.png")
    assert splits["all"]["label"][row] == 0  # the folder takes precedence
    with pytest.raises(UserError, match=r"gone\.png"):
        load_splits(folder, strict=True)


@pytest.mark.parametrize("place", ["root", "split", "class"])
def test_metadata_of_root_split_or_class_gives_the_patient(tmp_path, place):
    for split in ("train", "test"):
        folder = draw_folder(tmp_path / split, patients=2)
        if place == "split":
            names = [path.relative_to(folder) for path in sorted(folder.rglob("*.png"))]
            write_metadata(folder, "file_name,Patient_ID", *(f"{name},p" for name in names))
        if place == "class":
            for inner in folder.iterdir():
                names = sorted(path.name for path in inner.iterdir())
                write_metadata(inner, "File_Name,patient_id", *(f"{name},p" for name in names))
    if place == "root":
        names = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.png"))]
        write_metadata(tmp_path, "file_name,patient_id", *(f"{name},p" for name in names))
    splits = load_splits(tmp_path)
    assert set(splits["train"]["patient"][:]) == set(splits["test"]["patient"][:]) == {"p"}
    assert set(kinds_of(splits)) == {"both_labels"}


@pytest.mark.parametrize("name", ["path", "bytes", "image", "file", "source", "label_", " "])
def test_column_of_metadata_never_replaces_one_of_ours(tmp_path, name):
    folder = draw_folder(tmp_path / "data", patients=3)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    write_metadata(folder, f"file_name,{name},age", *(f"{one},/else/{one},3" for one in names))
    data = load_splits(folder)["all"]
    assert sorted(image["path"] for image in data["image"]) == [str(folder / n) for n in names]
    assert sorted(data["file"][:]) == names and set(data["source"][:]) == {"data"}
    assert set(data["label"][:]) == {0, 1} and set(data["age"][:]) == {"3"}
    assert len(data.features) == 7


def test_labels_of_metadata_may_be_numbers_and_cells_may_be_padded(tmp_path):
    folder = draw_flat(tmp_path / "flat", 4)
    rows = [f"{n}.png,{n % 2}, p{n} ,{' ' if n else ''}" for n in range(4)]
    write_metadata(folder, "file_name,label,patient_id,age", *rows, rows[1], "1.png,1,p1,")
    assert load_splits(folder)["all"]["label"][:] == [0, 1, 0, 1]
    write_metadata(folder, "file_name,label", *(f"{n}.png,maybe" for n in range(4)))
    with pytest.raises(UserError, match=r"no X-ray labelled NORMAL or PNEUMONIA.*0\.png.*maybe"):
        load_splits(folder)


def test_missing_files_of_a_splits_metadata_are_reported(tmp_path):
    for split in ("train", "test"):
        folder = draw_folder(tmp_path / split, patients=2)
        write_metadata(folder, "file_name,age", "NORMAL/gone.png,3", "NORMAL/IM-0000-0000.png,3")
    found = kinds_of(load_splits(tmp_path))
    assert found["metadata_missing_file"] == ["test/NORMAL/gone.png", "train/NORMAL/gone.png"]
    assert len(found["metadata_left_out"]) == 6


def test_metadata_written_on_windows_gives_the_patients(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=4)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    # A name may hold a backslash: that file comes first.
    odd = folder / "NORMAL" / "a\\b.png"
    draw_xray(3, ill=False).save(odd)
    draw_xray(4, ill=False).save(folder / "NORMAL" / "b.png")
    rows = [f"{name},p{number // 2}".replace("/", "\\") for number, name in enumerate(names)]
    write_metadata(folder, "file_name,patient_id", *rows, "NORMAL/a\\b.png,odd", "NORMAL/b.png,b")
    splits = load_splits(folder)
    found = dict(zip(splits["all"]["file"][:], splits["all"]["patient"][:], strict=True))
    assert found == {name: f"p{number // 2}" for number, name in enumerate(names)} | {
        "NORMAL/a\\b.png": "odd",
        "NORMAL/b.png": "b",
    }
    assert not {kind for kind in kinds_of(splits) if kind.startswith("metadata")}


def test_metadata_in_a_place_where_it_is_not_read_is_reported(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=2)
    (folder / "NORMAL" / "images").mkdir()
    write_metadata(folder / "NORMAL" / "images", "file_name,patient_id", "1.png,p")
    assert kinds_of(load_splits(folder)) == {"not_an_image": ["NORMAL/images/metadata.csv"]}


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("place", ["", "NORMAL"])
def test_metadata_of_which_most_rows_match_no_file_stops_the_run(tmp_path, place, count):
    folder = draw_folder(tmp_path / "data", patients=4) / place
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))[:4]
    rows = [*names[:count], *(f"images/{number}.png" for number in range(4 - count))]
    write_metadata(folder, "file_name,patient_id", *(f"{name},p" for name in rows))
    if count == 3:
        assert kinds_of(load_splits(tmp_path / "data"))["metadata_missing_file"]
        return
    words = rf"{4 - count} of the 4 rows of .*metadata\.csv match no file.*'images/0\.png'"
    with pytest.raises(UserError, match=words):
        load_splits(tmp_path / "data")


def test_folder_that_cannot_be_opened_is_reported(tmp_path, monkeypatch):
    from pneumonia_hf.data import folder_source as folders

    folder = draw_folder(tmp_path / "data", patients=3)
    (folder / "NORMAL" / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    found = kinds_of(load_splits(folder))
    assert [name.rsplit("/", 1)[1] for name in found["closed_folder"]] == ["closed"]


def test_two_links_to_one_folder_both_count(tmp_path):
    folder = draw_folder(tmp_path / "store", patients=3)
    draw_folder(tmp_path / "data", patients=3)
    for name in ("a", "b"):
        (tmp_path / "data" / "NORMAL" / name).symlink_to(folder / "NORMAL")
    assert len(load_splits(tmp_path / "data")["all"]) == 12


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,patient\nNORMAL,1\n", "no column file_name"),
        ("file_name,label\n,NORMAL\n", "Line 2 .* names no file"),
        ("file_name,label\n", "has no rows"),
        ("file_name,label\n0.png,NORMAL\n0.png,PNEUMONIA\n", "0.png twice"),
    ],
)
def test_invalid_metadata_is_refused_in_one_sentence(tmp_path, text, words):
    folder = draw_folder(tmp_path / "data", patients=2)
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        load_splits(folder)


# ---------------------------------------------------------------------------------- several


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


# ---------------------------------------------------------------------------- Hub and shards


def make_parquet(count: int, seed: int = 0) -> bytes:
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(
        {
            "image": ImageFeature(),
            # Another order and case than ours, and a third class.
            "label": ClassLabel(names=["Pneumonia", "Normal", "covid"]),
            "view": Value("string"),
        }
    )
    rows = {
        "image": [
            {
                "bytes": encode(draw_xray(seed + n, ill=n % 2 == 0), "PNG"),
                "path": f"person{n // 2}_virus_{n}.jpeg",
            }
            for n in range(count)
        ],
        "label": [n % 2 for n in range(count - 1)] + [2],
        "view": ["PA"] * count,
    }
    buffer = io.BytesIO()
    Dataset.from_dict(rows, features=features).to_parquet(buffer)
    return buffer.getvalue()


def assert_equals_drawn(split, count: int, seed: int = 0) -> None:
    """Check labels and images against what make_parquet and make_tar draw."""
    assert split["label"][:] == [1 - n % 2 for n in range(count)]
    images = list(open_images(split))
    assert len(images) == count
    for n, (_, image) in enumerate(images):
        drawn = np.asarray(draw_xray(seed + n, ill=n % 2 == 0))
        assert np.array_equal(np.asarray(read_xray(image)), drawn)


def write_parquet(path, features: dict, **columns) -> None:
    from datasets import Dataset, Features

    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)


def make_columns(count: int) -> dict:
    """Return an image column with file names of the Kermany set."""
    return {
        "image": [
            {
                "bytes": encode(draw_xray(n, ill=n % 2 == 1), "PNG"),
                "path": f"person{n // 3}_virus_{n}.png",
            }
            for n in range(count)
        ]
    }


def test_patients_of_shards_come_from_file_names(tmp_path):
    from datasets import Image as ImageFeature
    from datasets import Value

    kinds = {"image": ImageFeature(), "label": Value("string")}
    labels = ["NORMAL", "PNEUMONIA"] * 6
    write_parquet(tmp_path / "x.parquet", kinds, **make_columns(12), label=labels)
    splits = load_splits(f"shards:{tmp_path}/x.parquet")
    assert splits["all"]["patient"][:4] == ["person0", "person0", "person0", "person1"]
    assert splits["all"]["file"][1] == "person0_virus_1.png"
    assert "own_patient" not in kinds_of(splits)


def test_patient_number_0_is_a_patient_and_nan_is_not(tmp_path):
    from datasets import Image as ImageFeature
    from datasets import Value

    columns = make_columns(8)
    for image in columns["image"]:
        image["path"] = "image.png"  # as some sets call all of them
    kinds = {"image": ImageFeature(), "label": Value("int64"), "patient_id": Value("float64")}
    patients = [0, 0, 1, 1, None, float("nan"), 2, 2]
    labels = [0, 1] * 4
    file = tmp_path / "x.parquet"
    write_parquet(file, kinds, **columns, label=labels, patient_id=patients)
    data = load_splits(f"shards:{file}")["all"]
    assert data["label"][:] == labels
    assert data["patient"][:4] + data["patient"][6:] == ["0", "0", "1", "1", "2", "2"]
    assert len(set(data["patient"][:])) == 5


def test_label_column_is_found_by_its_classes_or_name(tmp_path):
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    kinds = {"image": ImageFeature(), "sex": ClassLabel(names=["F", "M"]), "label": Value("string")}
    labels = ["NORMAL", "PNEUMONIA"] * 4
    file = tmp_path / "x.parquet"
    write_parquet(file, kinds, **make_columns(8), sex=[0, 0, 1, 1] * 2, label=labels)
    assert load_splits(f"shards:{file}")["all"]["label"][:] == [0, 1] * 4
    kinds["label"] = ClassLabel(names=["no", "yes"])
    write_parquet(file, kinds, **make_columns(8), sex=[0] * 8, label=[0, 1] * 4)
    with pytest.raises(UserError, match=r"no image labelled NORMAL or PNEUMONIA.*no, yes"):
        load_splits(f"shards:{file}")


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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import datasets.config
    import huggingface_hub.constants as constants
    from huggingface_hub import hf_file_system

    with LocalHub() as server:
        for place in (constants, datasets.config):
            for name in ("ENDPOINT", "HF_ENDPOINT"):
                if hasattr(place, name):
                    monkeypatch.setattr(place, name, server.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        hf_file_system.HfFileSystem.clear_instance_cache()
        yield server
        hf_file_system.HfFileSystem.clear_instance_cache()


def test_hub_dataset_has_labels_by_name_and_patients_by_file(hub):
    repository = Repository(private=False)
    files = {
        f"data/{split}-00000-of-00001.parquet": make_parquet(count, seed)
        for split, count, seed in (("train", 13, 0), ("validation", 9, 50), ("test", 7, 90))
    }
    repository.commit("add", files)
    hub.repositories["someone/xrays"] = repository
    splits = load_splits("hub:someone/xrays")
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 12,
        "validation": 8,
        "test": 6,
    }
    for name, count, seed in (("train", 12, 0), ("validation", 8, 50), ("test", 6, 90)):
        assert_equals_drawn(splits[name], count, seed)
    assert splits["train"]["patient"][:3] == ["train/person0", "train/person0", "train/person1"]
    assert splits["train"]["view"][0] == "PA"
    assert kinds_of(splits)["unknown_label"][0] == "train/person6_virus_12.jpeg"
    repository.commit("more", {"data/extra-00000-of-00001.parquet": make_parquet(5)})
    more = load_splits("hub:someone/xrays@main")
    assert {name: len(rows) for name, rows in more.items()} == {
        "train": 12,
        "validation": 8,
        "test": 6,
    }
    assert [(one.file, one.count) for one in more.issues if one.kind == "no_place"] == [
        ("extra", 5)
    ]
    with pytest.raises(UserError, match="no dataset someone/none"):
        load_splits("hub:someone/none")
    with pytest.raises(UserError, match="revision 'v9'"):
        load_splits("hub:someone/xrays@v9")


CARD = """---
configs:
- config_name: small
  data_files: small/*.parquet
- config_name: large
  data_files: large/*.parquet
---
"""


def test_configuration_of_a_hub_dataset_is_named_after_a_colon(hub):
    repository = Repository(private=False)
    files = {f"{name}/0.parquet": make_parquet(n, n) for name, n in (("small", 7), ("large", 9))}
    first = repository.commit("add", files | {"README.md": CARD.encode()})
    repository.commit("less", {"large/0.parquet": make_parquet(5, 5)})
    hub.repositories["someone/several"] = repository
    for where, count, seed in (
        ("someone/several:small", 6, 7),
        ("someone/several:large", 4, 5),
        (f"someone/several:large@{first}", 8, 9),
    ):
        (rows,) = load_splits(f"hub:{where}").values()
        assert_equals_drawn(rows, count, seed)
    with pytest.raises(UserError, match=r"no configuration 'huge'; give .*:small or .*:large"):
        load_splits("hub:someone/several:huge")
    with pytest.raises(UserError, match=r"has several configurations; give .*:small or .*:large"):
        load_splits("hub:someone/several")
    with pytest.raises(UserError, match="no dataset someone/none"):
        load_splits("hub:someone/none:small")
    hub.repositories["someone/one"] = one = Repository(private=False)
    one.commit("add", {"data/train-0.parquet": make_parquet(7)})
    with pytest.raises(UserError, match="has no configuration 'small'; leave it out"):
        load_splits("hub:someone/one:small")


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


def test_image_that_is_gone_from_its_shard_is_an_error_and_the_others_are_read(tmp_path):
    make_tar(tmp_path / "x.tar", 6)
    splits = load_splits(f"shards:{tmp_path}/x.tar")
    make_tar(tmp_path / "x.tar", 4)
    images = [image for _, image in open_images(splits["all"])]
    assert [isinstance(one, bytes) for one in images] == [True] * 4 + [False] * 2
    assert all(isinstance(one, XrayError) for one in images[4:])


def test_medmnist_is_read_from_its_file(tmp_path):
    arrays = {}
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        arrays[f"{split}_images"] = np.stack(
            [np.asarray(draw_xray(n, ill=n % 2 == 1, size=(28, 28))) for n in range(count)]
        )
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    splits = load_splits(f"medmnist:28@{tmp_path}")
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 12,
        "validation": 6,
        "test": 6,
    }
    assert splits["train"]["label"][:] == [0, 1] * 6
    for n, (_, image) in enumerate(open_images(splits["train"])):
        assert np.array_equal(np.asarray(read_xray(image)), arrays["train_images"][n])
    assert sum(one.count for one in splits.issues) == 24  # it has no patients


def test_every_kind_of_source_is_tested_here():
    assert set(SOURCES) == {"folder", "one_vs_rest", "hub", "medmnist", "shards"}


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
