"""Mistakes in the flags of an audit."""

import shutil

from helpers import assert_one_sentence, call_script


def test_each_mistake_is_one_sentence(clean, tmp_path):
    flags = ["--output_dir", tmp_path / "x"]
    done = call_script("audit_data.py", "--data_dir", tmp_path / "none", *flags)
    assert_one_sentence(done, "does not exist")
    done = call_script("audit_data.py", "--data_dir", clean, *flags, "--features", "x")
    assert_one_sentence(done, "Unknown features", "pixels")
    done = call_script("audit_data.py", "--data_dir", clean, *flags, "--weights", tmp_path / "none")
    assert_one_sentence(done, "does not exist", "--weights")
    (tmp_path / "file").write_text("x")
    into = ["--output_dir", tmp_path / "file" / "x"]
    assert_one_sentence(call_script("audit_data.py", "--data_dir", clean, *into), "is a file")
    assert not (tmp_path / "x").exists()
    folder = shutil.copytree(clean, tmp_path / "data")
    (folder / "train" / "notes.txt").write_text("x")
    done = call_script("audit_data.py", "--data_dir", folder, *flags, "--strict")
    assert_one_sentence(done, "train/notes.txt", "--strict")
    for path in folder.rglob("*.png"):
        path.write_text("no image")
    done = call_script("audit_data.py", "--data_dir", folder, *flags)
    assert_one_sentence(done, "No image can be read", "not an image")
