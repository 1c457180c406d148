"""Lists of test, validation and excluded images, and those of this repository."""

import numpy as np
import pytest
from helpers import REAL_XRAYS, ROOT, draw_folder

from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import (
    IMAGE_LISTS,
    DataConfig,
    load_splits,
    load_xrays,
    read_image_lists,
)
from pneumonia_hf.errors import UserError

SPLITS = ROOT / "train_scripts" / "splits"
ALL = ("train", "validation", "test")


def test_listed_images_are_the_test_split_and_their_patients_are_not_trained_on(tmp_path):
    one, two = draw_folder(tmp_path / "one", patients=40, images=2), tmp_path / "two"
    draw_folder(two, patients=40, seed=9000)
    data = load_splits(one)["all"]
    hashes = to_hex(hash_images(data))
    # The first image of each of ten patients; the second must be in no split.
    rows = [row for row, file in enumerate(data["file"][:]) if file.endswith(("0.png",))][:10]
    listed = tmp_path / "test.txt"
    listed.write_text("# ten images\n" + "".join(f"{hashes[row]}  # one\n" for row in rows))
    splits = load_xrays(DataConfig([f"one={one}", f"two={two}"], test_images=str(listed)))
    files = {name: set(splits[name]["file"][:]) for name in ALL}
    of_one = {file for file in files["test"] if file.startswith("one:")}
    assert of_one == {f"one:{data['file'][row]}" for row in rows}
    tested = {f"one:{data['patient'][row]}" for row in rows}
    for name in ("train", "validation"):
        assert not tested & set(splits[name]["patient"][:])
        assert any(file.startswith("two:") for file in files[name])
    assert sum(map(len, files.values())) == 160 + 80 - 10
    # The other source has a test split of its own, of the usual share.
    assert 8 <= len(files["test"] - of_one) <= 16


def test_listed_training_images_of_a_source_with_its_own_split_are_refused(tmp_path):
    for name, seed in (("train", 0), ("test", 500)):
        draw_folder(tmp_path / "data" / name, patients=20, seed=seed)
    own = load_splits(tmp_path / "data")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(to_hex(hash_images(own["test"]))[:3]))
    load_xrays(DataConfig(str(tmp_path / "data"), test_images=str(listed)))
    listed.write_text("\n".join(to_hex(hash_images(own["train"]))[:3]))
    with pytest.raises(UserError, match=r"--test_images lists 3 training images of .*data, which"):
        load_xrays(DataConfig(str(tmp_path / "data"), test_images=str(listed)))


def test_listed_images_are_the_validation_split(xray_folder, tmp_path):
    data = load_splits(xray_folder)["all"]
    rows = range(0, len(data), 5)
    listed = tmp_path / "validation.txt"
    listed.write_text("\n".join(to_hex(hash_images(data))[row] for row in rows))
    splits = load_xrays(DataConfig(str(xray_folder), validation_images=str(listed)))
    assert set(splits["validation"]["file"][:]) == {data["file"][row] for row in rows}
    patients = {name: set(split["patient"][:]) for name, split in splits.items()}
    assert not patients["validation"] & (patients["train"] | patients["test"])
    assert len(splits["test"]) > 0  # drawn from the rest, as usual


def test_excluded_images_are_in_no_split(xray_folder, tmp_path):
    data = load_splits(xray_folder)["all"]
    rows = range(0, len(data), 7)
    listed = tmp_path / "excluded.txt"
    listed.write_text("\n".join(to_hex(hash_images(data))[row] for row in rows))
    splits = load_xrays(DataConfig(str(xray_folder), exclude_images=str(listed)))
    files = [file for name in ALL for file in splits[name]["file"][:]]
    excluded = {data["file"][row] for row in rows}
    assert sorted(files) == sorted(set(data["file"][:]) - excluded)


def test_excluded_images_are_left_out_of_the_splits_that_a_source_has(tmp_path):
    for number, name in enumerate(("train", "val", "test")):
        draw_folder(tmp_path / "data" / name, patients=8, seed=number * 100)
    own, listed = load_splits(tmp_path / "data"), tmp_path / "excluded.txt"
    listed.write_text("\n".join(to_hex(hash_images(own[name]))[0] for name in ALL))
    # 15 images are not too few.
    config = DataConfig(str(tmp_path / "data"), smallest_validation=15, exclude_images=str(listed))
    splits = load_xrays(config)
    assert [splits[name]["file"][:] for name in ALL] == [own[name]["file"][1:] for name in ALL]


def test_several_lists_of_images_are_one(xray_folder, tmp_path):
    hashes = to_hex(hash_images(load_splits(xray_folder)["all"]))
    paths = [tmp_path / name for name in ("a.txt", "b.txt")]
    for path, some in zip(paths, (hashes[:9], hashes[9:20]), strict=True):
        path.write_text("\n".join(some))
    config = DataConfig(str(xray_folder), exclude_images=[str(path) for path in paths])
    assert sum(map(len, load_xrays(config).values())) == len(hashes) - 20


@pytest.mark.parametrize("flag", IMAGE_LISTS)
@pytest.mark.parametrize("text", ["", "# nothing\n", "no hash\n", None])
def test_list_of_images_that_is_none_is_reported(xray_folder, tmp_path, text, flag):
    listed = tmp_path / "list.txt"
    if text is not None:
        listed.write_text(text)
    with pytest.raises(UserError, match=r"list\.txt"):
        load_xrays(DataConfig(str(xray_folder), **{flag: str(listed)}))


def test_committed_lists_of_test_images_are_in_no_other_list():
    lists = {path.stem: read_image_lists([path]) for path in SPLITS.glob("*.txt")}
    assert lists["rsna_adult_validation"] < lists["rsna_adult_train"]
    for name in ("rsna_adult_test", "rsna_more_test"):
        tested = lists.pop(name)
        assert tested and not tested & set.union(*lists.values())


@pytest.mark.skipif(not REAL_XRAYS.exists(), reason="the real X-rays are not beside this checkout")
def test_halves_of_the_adults_share_no_patient_and_lack_no_image():
    data = load_splits(f"one_vs_rest:{REAL_XRAYS / 'rsna_adult'}")["all"]
    hashes = to_hex(hash_images(data))
    patients = dict(zip(hashes, data["patient"][:], strict=True))
    halves = [read_image_lists([SPLITS / f"rsna_adult_{half}.txt"]) for half in ("train", "test")]
    assert set.union(*halves) == set(hashes)
    assert not set.intersection(*({patients[one] for one in half} for half in halves))


@pytest.mark.skipif(not REAL_XRAYS.exists(), reason="the real X-rays are not beside this checkout")
def test_other_images_of_patients_of_both_rsna_samples_are_excluded():
    labelled = {
        patient
        for name in ("rsna_adult", "rsna_more")
        for patient in load_splits(f"one_vs_rest:{REAL_XRAYS / name}")["all"]["patient"][:]
    }
    excluded = read_image_lists([SPLITS / "nih_excluded.txt"])
    for name in ("nih_adult", "nih_sample"):
        mined = load_splits(f"one_vs_rest:{REAL_XRAYS / name}")["all"]
        kept = np.array([one not in excluded for one in to_hex(hash_images(mined))])
        assert 0 < kept.sum() < len(mined)
        assert set(np.array(mined["patient"][:])[~kept]) <= labelled
        assert not set(np.array(mined["patient"][:])[kept]) & labelled
