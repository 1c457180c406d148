"""What metadata.csv says of labels and patients, and what of it is refused or reported."""

import pytest
from helpers import draw_folder, draw_xray
from xray_files import kinds_of

from pneumonia_hf.data.issues import ISSUE_KINDS
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError


def draw_flat(folder, count: int = 6):
    folder.mkdir()
    for number in range(count):
        draw_xray(number, ill=number % 2 == 1).save(folder / f"{number}.png")
    return folder


def write_metadata(folder, *lines: str) -> None:
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


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


def test_unknown_label_of_metadata_is_named_where_a_class_is_lacking(tmp_path):
    rows = [f"images/{number}.png,{('Normal', 'Lung Opacity')[number % 2]}" for number in range(6)]
    (tmp_path / "images").mkdir()
    for number in range(6):
        draw_xray(number, ill=False).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "\n".join(rows))
    with pytest.raises(UserError, match=r"no PNEUMONIA images, but 3 .* says 'Lung Opacity'"):
        load_splits(tmp_path)


def test_patients_written_as_not_available_are_none_and_a_split_column_is_no_split(
    tmp_path, caplog
):
    folder = draw_flat(tmp_path / "data")
    patients = ("NA", "NA", "NaN", "NaN", "None", "None")
    rows = [f"{number}.png,{number % 2},{one},test" for number, one in enumerate(patients)]
    write_metadata(folder, "file_name,label,patient_id,Split", *rows)
    splits = load_splits(folder)
    assert [*splits] == ["all"]
    assert len(set(splits["all"]["patient"][:])) == 6
    assert caplog.text.count("column split of metadata.csv is not used") == 1


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
        assert ISSUE_KINDS[kind] in caplog.text
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
    assert len(data.features) == 8


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


def test_tables_of_several_folders_are_joined(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=3)
    names = sorted(one.name for one in (folder / "NORMAL").iterdir())
    rows = [f"{one.relative_to(folder)},p{one.stem}" for one in folder.rglob("*.png")]
    (folder / "metadata.csv").write_text("\n".join(["file_name,patient_id", *rows]))
    table = folder / "NORMAL" / "metadata.csv"
    table.write_text("\n".join(["file_name,view", *(f"{name},PA" for name in names)]))
    data = load_splits(folder)["all"]
    assert {one[0] for one in data["patient"][:]} == {"p"}
    assert data["view"][:3] == ["PA"] * 3
    table.write_text(f"file_name,patient_id\n{names[0]},other\n")
    with pytest.raises(UserError, match=r"patient_id 'other' of .*and another metadata.csv 'p"):
        load_splits(folder)


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
