"""Odd images and files."""

import shutil

import numpy as np
from helpers import draw_textured_xray
from PIL import Image
from xray_files import make_dicom

from pneumonia_hf.audit.run import audit_sources


def test_each_odd_image_or_file_is_reported_by_its_check(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / "data")
    normal = folder / "train" / "NORMAL"
    Image.new("L", (200, 180), 90).save(normal / "blank.png")
    draw_textured_xray(1, False).resize((40, 36)).save(normal / "small.png")
    draw_textured_xray(2, False).resize((400, 90)).save(normal / "long.png")
    Image.merge("RGB", [draw_textured_xray(n, False) for n in (3, 4, 5)]).save(
        normal / "colour.png"
    )
    gray = np.asarray(draw_textured_xray(7, False)).astype(np.uint16) * 16
    (normal / "ct.dcm").write_bytes(make_dicom(gray, Modality="CT"))
    (normal / "lateral.dcm").write_bytes(make_dicom(gray[::-1], ViewPosition="LL"))
    white = np.asarray(draw_textured_xray(6, False)).copy()
    white[:60] = 255
    Image.fromarray(white).save(normal / "white.png")
    (normal / "text.jpeg").write_text("no image")
    (normal / "notes.txt").write_text("notes")
    findings, _ = audit_sources(folder)
    expected = {
        "blank": ["blank.png"],
        "sizes": ["long.png", "small.png"],
        "modes": ["colour.png", "ct.dcm", "lateral.dcm"],
        "saturated": ["white.png"],
        "unreadable": ["text.jpeg"],
        "strays": ["notes.txt"],
    }
    for name, files in expected.items():
        assert findings[name].more["files"] == [f"train/NORMAL/{file}" for file in files], name
        assert findings[name].verdict == "warn", name
    assert findings["unknown_patients"].count == 8
    assert findings["unknown_patients"].more["files"] == ["train/NORMAL/blank.png"]
    assert "not an image" in findings["unreadable"].examples[0]["reason"]
