import json
import re
import shutil

import numpy as np
import pytest
from helpers import REAL_XRAYS, draw_folder, draw_xray
from xray_files import RAMP, make_dicom

from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import (
    DataConfig,
    load_splits,
    load_xrays,
)
from pneumonia_hf.data.splits import split_by_patient
from pneumonia_hf.data.table import RowTable, XrayData
from pneumonia_hf.errors import UserError
from pneumonia_hf.models.model_folder import DEFAULT_MODEL

ALL = ("train", "validation", "test")


def patients_of(splits) -> dict[str, set[str]]:
    return {name: set(splits[name]["patient"][:]) for name in ALL}


def test_class_folders_are_split_by_patient_and_no_image_is_lost(xray_folder):
    splits = load_xrays(DataConfig(str(xray_folder)))
    patients = patients_of(splits)
    assert not patients["train"] & patients["validation"]
    assert not patients["train"] & patients["test"]
    assert not patients["validation"] & patients["test"]
    files = [image["path"] for name in ALL for image in splits[name]["image"][:]]
    assert sorted(files) == sorted(map(str, xray_folder.rglob("*.png")))
    for name in ("validation", "test"):
        share = len(splits[name]) / len(files)
        assert share == pytest.approx(0.15, abs=0.02)  # of all images, also of the second
        assert 0.4 < sum(splits[name]["label"][:]) / len(splits[name]) < 0.6


def test_sources_of_one_hospital_are_named_so(tmp_path):
    sources = [
        f"{name}={draw_folder(tmp_path / name, patients=10, seed=start)}"
        for name, start in (("a", 0), ("b", 4000), ("c", 8000))
    ]
    data = load_xrays(DataConfig(sources, hospitals=["north=a,c"]))["train"]
    pairs = {*zip(data["source"][:], data["hospital"][:], strict=True)}
    assert pairs == {("a", "north"), ("b", "b"), ("c", "north")}
    for wrong in ("north=a,d", "north", "a,c"):
        with pytest.raises(UserError, match=r"NAME=SOURCE,SOURCE with the sources a, b, c\."):
            load_xrays(DataConfig(sources, hospitals=[wrong]))


def test_splits_keep_the_shares_of_the_views_and_of_the_classes_in_one_vs_rest(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=40)
    (folder / "OTHER").mkdir()
    for number in range(20):  # from NORMAL
        (folder / "NORMAL" / f"IM-{number:04}-0000.png").rename(folder / f"OTHER/o{number}.png")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    views = ["AP" if number % 10 == 0 else "PA" for number in range(len(files))]
    rows = [f"{file},p{n},{view}" for n, (file, view) in enumerate(zip(files, views, strict=True))]
    (folder / "metadata.csv").write_text("\n".join(["file_name,patient_id,view", *rows]))
    for seed in range(5):
        config = DataConfig(
            f"one_vs_rest:{folder}", validation_fraction=0.2, test_fraction=0.2, split_seed=seed
        )
        data = load_xrays(config)["validation"]
        assert 3 <= data["class"][:].count("OTHER") <= 5
        assert data["view"][:].count("AP") in (1, 2)
        assert {"NORMAL", "OTHER", "PNEUMONIA"} == set(data["class"][:])


def test_labels_follow_the_class_folders(xray_folder):
    data = load_splits(xray_folder)["all"]
    for row in data:
        assert ("PNEUMONIA" in row["image"]["path"]) == (row["label"] == 1)
    assert data.features["label"].names == ["NORMAL", "PNEUMONIA"]


def test_same_seed_gives_the_same_splits_and_another_seed_does_not(xray_folder):
    one, two, other = (
        patients_of(load_xrays(DataConfig(str(xray_folder), split_seed=seed))) for seed in (1, 1, 2)
    )
    assert one == two
    assert one["test"] != other["test"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Rows of 400 patients with 1 to 6 images each, three quarters with pneumonia."""
    generator = np.random.default_rng(0)
    listing, table = XrayData(), RowTable()
    for patient in range(400):
        for image in range(generator.integers(1, 7)):
            file = f"{patient}/{image}.png"
            table.add(f"/nowhere/{file}", file, int(patient % 4 > 0), f"patient {patient}")
    return table.finish(listing)


@pytest.mark.parametrize("fraction", [0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5])
def test_requested_share_is_met_within_one_percent(many, fraction):
    kept, second = split_by_patient(many, fraction, seed=1)
    assert len(kept) + len(second) == len(many)
    assert abs(len(second) / len(many) - fraction) < 0.01
    assert not set(kept["patient"][:]) & set(second["patient"][:])
    for label in (0, 1):  # classes keep their shares
        of_class = second["label"][:].count(label) / many["label"][:].count(label)
        assert abs(of_class - fraction) < 0.02


def test_both_default_fractions_are_of_all_images(xray_folder):
    splits = load_xrays(DataConfig(str(xray_folder)))
    total = sum(len(one) for one in splits.values())
    for name in ("validation", "test"):
        assert abs(len(splits[name]) / total - 0.15) <= 0.01


def test_share_that_whole_patients_cannot_meet_is_refused(tmp_path):
    data = load_splits(draw_folder(tmp_path / "data", patients=6))["all"]
    with pytest.raises(UserError, match=r"cannot make up 20.0% of the 12 images; .* 16.7%"):
        split_by_patient(data, 0.2, seed=1)
    kept, second = split_by_patient(data, 1 / 6, seed=1)
    assert (len(kept), len(second)) == (10, 2)


def test_share_that_the_error_advises_is_met(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=15)
    shares = {"test_fraction": 0.133}
    with pytest.raises(UserError, match=r"15.0% of the 30 images.*--validation_\w+ 0.1") as error:
        load_xrays(DataConfig(str(folder), **shares))
    advised = re.search(r"--(\w+) ([\d.]+),", str(error.value))
    splits = load_xrays(DataConfig(str(folder), **shares, **{advised[1]: float(advised[2])}))
    assert len(splits["validation"]) / 30 == pytest.approx(float(advised[2]), abs=0.001)


def test_patient_with_both_labels_stays_in_one_split():
    listing, table = XrayData(), RowTable()
    for patient in range(100):
        for image in range(2):
            label = image if patient < 20 else patient % 2
            table.add(f"/nowhere/{patient}-{image}", f"{patient}-{image}", label, f"p{patient}")
    kept, second = split_by_patient(table.finish(listing), 0.2, seed=3)
    assert not set(kept["patient"][:]) & set(second["patient"][:])
    assert len(second) == 40


def test_existing_splits_are_used_as_they_are(tmp_path):
    for number, name in enumerate(("train", "val", "test")):
        draw_folder(tmp_path / name, patients=8, seed=number * 50)
    splits = load_xrays(DataConfig(str(tmp_path), smallest_validation=1))
    for name, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert all(f"/{folder}/" in image["path"] for image in splits[name]["image"][:])
        assert len(splits[name]) == 16


def test_tiny_val_split_joins_train_and_a_new_one_is_made(tmp_path, caplog):
    for number, name in enumerate(("train", "val", "test")):
        draw_folder(tmp_path / name, patients=10, seed=number * 50)
    splits = load_xrays(DataConfig(str(tmp_path)))
    assert "too few to choose" in caplog.text
    assert len(splits["train"]) + len(splits["validation"]) == 40
    assert not patients_of(splits)["train"] & patients_of(splits)["validation"]
    assert len(splits["test"]) == 20


def test_person_numbers_of_two_splits_are_different_patients(tmp_path):
    for name in ("train", "test"):
        draw_folder(tmp_path / name, patients=8)
    splits = load_splits(tmp_path)
    assert not set(splits["train"]["patient"][:]) & set(splits["test"]["patient"][:])


def test_metadata_gives_the_patient(tmp_path, caplog):
    for name in ("NORMAL", "PNEUMONIA"):
        (tmp_path / name).mkdir()
        for number in range(4):
            draw_xray(number, ill=False).save(tmp_path / name / f"{number}.png")
    load_splits(tmp_path)
    assert "8 file(s) do not name their patient" in caplog.text
    caplog.clear()
    rows = [f"{n}/{i}.png,{n[0]}{i // 2}" for n in ("NORMAL", "PNEUMONIA") for i in range(4)]
    (tmp_path / "metadata.csv").write_text("file_name,patient_id\n" + "\n".join(rows) + "\n")
    assert set(load_splits(tmp_path)["all"]["patient"][:]) == {"N0", "N1", "P0", "P1"}
    assert caplog.text == ""


def test_patients_in_several_splits_are_reported(tmp_path, caplog):
    rows = ["file_name,patient_id"]
    for number, name in enumerate(("train", "val", "test")):
        draw_folder(tmp_path / name, patients=8, seed=number * 50)
        files = sorted(path.relative_to(tmp_path) for path in (tmp_path / name).rglob("*.png"))
        rows += [f"{file},p{at + 10 * number * (name == 'val')}" for at, file in enumerate(files)]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    load_xrays(DataConfig(str(tmp_path), smallest_validation=1))
    said = [line for line in caplog.text.splitlines() if "optimistically biased" in line]
    assert [re.search(r"\d+ patients are in \w+ and in \w+", line)[0] for line in said] == [
        "6 patients are in train and in validation",
        "16 patients are in train and in test",
        "6 patients are in validation and in test",
    ]


def test_fractions_that_leave_too_little_to_train_on_are_refused():
    with pytest.raises(UserError, match=r"leave 0\.2 or more"):
        DataConfig("x", validation_fraction=0.5, test_fraction=0.5)


def test_folder_names_are_case_insensitive(tmp_path):
    draw_folder(tmp_path / "data", patients=2)
    (tmp_path / "data" / "NORMAL").rename(tmp_path / "data" / "Normal")
    (tmp_path / "data" / "PNEUMONIA").rename(tmp_path / "data" / "pneumonia")
    assert len(load_splits(tmp_path / "data")["all"]) == 4


def test_unused_files_are_logged(tmp_path, caplog):
    folder = draw_folder(tmp_path / "data", patients=2)
    (folder / "NORMAL" / "notes.txt").write_text("hello")
    (folder / "NORMAL" / ".DS_Store").write_text("junk")
    load_splits(folder)
    assert "notes.txt" in caplog.text
    assert ".DS_Store" not in caplog.text


def test_dicom_files_without_an_extension_are_found_and_folders_are_patients(tmp_path):
    for name in ("NORMAL", "PNEUMONIA"):
        for patient in ("a", "b"):
            (tmp_path / name / patient).mkdir(parents=True)
            (tmp_path / name / patient / "IM-0001-0001").write_bytes(make_dicom(RAMP))
            (tmp_path / name / patient / "README").write_text("no X-ray")
    data = load_splits(tmp_path)["all"]
    assert len(data) == 4
    assert len(set(data["patient"][:])) == 2  # a and b


def test_invalid_folders_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_splits(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        load_splits(tmp_path / "file")
    with pytest.raises(UserError, match="neither train/ val/ test/ nor"):
        load_splits(tmp_path)
    draw_folder(tmp_path / "outer" / "chest_xray" / "train", patients=2)
    with pytest.raises(UserError, match=r"did you mean .*chest_xray"):
        load_splits(tmp_path / "outer")
    one = draw_folder(tmp_path / "one", patients=2)
    shutil.rmtree(one / "NORMAL")
    with pytest.raises(UserError, match="no NORMAL folder"):
        load_splits(one)
    (one / "NORMAL").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        load_splits(one)
    few = draw_folder(tmp_path / "few", patients=3)
    with pytest.raises(UserError, match=r"Too few patients \(3 with NORMAL"):
        load_xrays(DataConfig(str(few)))


@pytest.mark.skipif(not REAL_XRAYS.exists(), reason="the real X-rays are not beside this checkout")
def test_splits_of_the_default_model_share_no_patient(tmp_path):
    data = load_splits(str(REAL_XRAYS / "train"))["all"]
    run = json.loads((DEFAULT_MODEL / "run.json").read_text())
    split_of = {digest: name for name, several in run["hashes"].items() for digest in several}
    splits = [split_of[digest] for digest in to_hex(hash_images(data))]
    assert len(splits) == 5216
    splits_of_patient = {}
    for patient, split in zip(data["patient"][:], splits, strict=True):
        splits_of_patient.setdefault(patient, set()).add(split)
    assert all(len(found) == 1 for found in splits_of_patient.values())


def test_folders_that_are_scored_as_other_classes_are_not_said_to_be_left_out(tmp_path, caplog):
    folder = draw_folder(tmp_path / "data", patients=2)
    for name in ("OTHER", "OTHER2"):
        shutil.copytree(folder / "NORMAL", folder / name)
    assert len(load_splits(folder, others=["OTHER/"])["all"]) == 4
    (text,) = (one for one in caplog.messages if "neither NORMAL nor" in one)
    assert text.startswith("2 file(s)") and "OTHER2/" in text and "OTHER/" not in text
