"""Planted duplicates and shared patients are found, and only those."""

import shutil

import numpy as np
import pytest
from helpers import REAL_XRAYS
from PIL import Image, ImageEnhance

from pneumonia_hf.audit.run import audit_sources


def test_exact_duplicates_are_found_by_pixels_not_by_files(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / "data")
    image = Image.open(folder / "train/NORMAL/IM-0003-0000.png")
    image.convert("RGB").save(folder / "test/NORMAL/IM-0999-0000.bmp")
    shutil.copy(
        folder / "train/NORMAL/IM-0005-0000.png", folder / "train/PNEUMONIA/person5_virus_9.png"
    )
    findings, _ = audit_sources(folder)
    found = findings["exact_duplicates"]
    assert found.verdict == "fail" and found.count == 2
    groups = {tuple(sorted(group)) for group in found.more["groups"]}
    assert groups == {
        ("test/NORMAL/IM-0999-0000.bmp", "train/NORMAL/IM-0003-0000.png"),
        ("train/NORMAL/IM-0005-0000.png", "train/PNEUMONIA/person5_virus_9.png"),
    }
    assert sorted(found.more["files"]) == sorted(name for group in groups for name in group)
    assert found.more["across_parts"] == 1 and found.more["across_labels"] == 1
    assert findings["near_duplicates"].count == 0  # reported only once


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((320, 280), Image.Resampling.BICUBIC),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: image.crop((2, 2, 158, 138)),
        lambda image: image.rotate(1, Image.Resampling.BICUBIC),
        lambda image: Image.fromarray(
            np.clip(
                np.asarray(image) + np.random.default_rng(0).normal(0, 6, (140, 160)), 0, 255
            ).astype(np.uint8)
        ),
    ],
    ids=["resized", "darker", "cropped", "rotated", "noisy"],
)
def test_near_duplicates_of_every_kind_are_found(clean, tmp_path, change):
    folder = shutil.copytree(clean, tmp_path / "data")
    for number in (1, 4, 7):
        image = Image.open(folder / f"train/PNEUMONIA/person{number}_virus_0.png")
        change(image).save(folder / f"test/PNEUMONIA/person9{number}_virus_0.jpeg", quality=80)
    found = audit_sources(folder)[0]["near_duplicates"]
    assert found.verdict == "fail" and found.count == found.more["across_parts"] == 3
    assert {tuple(sorted(group)) for group in found.more["groups"]} == {
        (
            f"test/PNEUMONIA/person9{number}_virus_0.jpeg",
            f"train/PNEUMONIA/person{number}_virus_0.png",
        )
        for number in (1, 4, 7)
    }


def test_patients_in_two_splits_fail(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / "data")
    rows = ["file_name,patient_id"]
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder).as_posix()
        rows.append(f"{name},{'shared' if '-0007-' in name or '-0207-' in name else name}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    found = audit_sources(folder)[0]["patient_overlap"]
    assert (found.verdict, found.count) == ("fail", 1)
    assert found.more["patients"] == ["shared"]
    assert found.more["files"] == [
        "train/NORMAL/IM-0007-0000.png",
        "test/NORMAL/IM-0207-0000.png",
    ]


@pytest.mark.skipif(not REAL_XRAYS.exists(), reason="needs the real X-rays")
def test_only_planted_copies_are_found_among_real_xrays(tmp_path):
    files = sorted((REAL_XRAYS / "nih_adult").rglob("*.jpg"))[::4]
    for path in files:
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name)
    planted = set()
    for number, path in enumerate(files[::16]):
        image = Image.open(path)
        width, height = image.size
        changed = [
            lambda image: image.resize((300, 300)),
            lambda image, w=width, h=height: image.crop(
                (w // 64, h // 64, w - w // 64, h - h // 64)
            ),
            lambda image: ImageEnhance.Contrast(image).enhance(1.3),
        ][number % 3](image)
        name = f"{path.parent.name}/copy{number}.png"
        changed.save(tmp_path / name)
        planted.add(frozenset({name, f"{path.parent.name}/{path.name}"}))
    found = audit_sources(tmp_path)[0]["near_duplicates"]
    assert {frozenset(group) for group in found.more["groups"]} == planted
