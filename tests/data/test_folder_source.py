"""Each file of a folder and each row of its metadata is used or reported."""

import os
import sys

import pytest
from helpers import draw_folder, draw_mask, draw_xray
from xray_files import encode, kinds_of

from pneumonia_hf.data.folder_source import list_others
from pneumonia_hf.data.issues import ISSUE_KINDS
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError


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
    data = load_splits(f"one_vs_rest:{folder}")["all"]
    assert data["label"][:] == [0, 1, 0] and data["class"][:] == ["NORMAL", "PNEUMONIA", "EFFUSION"]
    # 0 and 1 are names of the two classes; a column of that name is another one.
    lines = ["0.png,0,Normal", "1.png,1,", "2.png,OTHER,ward"]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,class", *lines]) + "\n")
    data = load_splits(f"one_vs_rest:{folder}")["all"]
    assert data["class"][:] == ["NORMAL", "PNEUMONIA", "OTHER"]
    assert data["class_"][:] == ["Normal", None, "ward"]
    data = load_splits(str(folder))["all"]
    assert "class" not in data.column_names and data["class_"][:] == ["Normal", None]


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


def test_link_to_a_file_that_does_not_exist_is_reported_as_such(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=2)
    (folder / "NORMAL" / "one.jpeg").symlink_to(tmp_path / "annex" / "one.jpeg")
    (issue,) = load_splits(folder).issues
    assert issue.file == "NORMAL/one.jpeg"
    assert issue.reason == "a link to a file that does not exist"


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
