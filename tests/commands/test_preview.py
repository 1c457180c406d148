from __future__ import annotations

import pytest
from helpers import assert_one_sentence, call_script
from PIL import Image

from pneumonia_hf.training.augment import (
    AUGMENTATIONS,
)


def test_the_script_writes_a_sheet_and_replaces_one_only_with_overwrite(xray_folder, tmp_path):
    sheet, recipe = tmp_path / "new" / "sheet.png", tmp_path / "recipe.yaml"
    # A recipe for training, with keys that the sheet does not use.
    recipe.write_text("augment_noise: 2\nseed: 5\nbackbone: vit-base\nnum_train_epochs: 6\n")
    flags = ["--data_dir", xray_folder, "--output", sheet, "--image_size", 32]
    flags += [
        word
        for name in sorted(AUGMENTATIONS)
        if name != "noise"
        for word in (f"--augment_{name}", 0)
    ]
    done = call_script("preview_augmentation.py", *flags, "--config", recipe)
    assert done.returncode == 0, done.stderr
    assert str(sheet) in done.stdout
    with Image.open(sheet) as image:
        assert image.format == "PNG" and min(image.size) > 200
    first = sheet.read_bytes()
    assert_one_sentence(call_script("preview_augmentation.py", *flags), "exists", "--overwrite")
    done = call_script("preview_augmentation.py", *flags, "--config", recipe, "--overwrite")
    assert done.returncode == 0 and sheet.read_bytes() == first


def test_the_script_lists_every_strength():
    done = call_script("preview_augmentation.py", "--help")
    assert done.returncode == 0
    assert all(f"--augment_{name}" in done.stdout for name in ("strength", *AUGMENTATIONS))


@pytest.mark.parametrize(
    "output, words", [("sheet.jpg", ".png"), ("folder.png", "is a folder"), ("", ".png")]
)
def test_the_script_reports_an_invalid_output_in_a_sentence(tmp_path, output, words):
    (tmp_path / "folder.png").mkdir()
    flags = ["--data_dir", tmp_path, "--output", tmp_path / output]
    assert_one_sentence(call_script("preview_augmentation.py", *flags), words)
