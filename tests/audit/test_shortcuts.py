"""Planted shortcuts are measured."""

import shutil

import numpy as np
import pytest
from helpers import draw_xrays
from PIL import Image

from pneumonia_hf.audit.label_errors import FeatureConfig
from pneumonia_hf.audit.run import audit_sources


def test_planted_shortcuts_are_measured_and_clean_data_has_none(tmp_path, clean_findings):
    draw_xrays(tmp_path, patients=40)
    for path in (tmp_path / "PNEUMONIA").iterdir():
        image = np.asarray(Image.open(path)).copy()
        image[:6, 100:130] = 255  # a marker in pneumonias only
        Image.fromarray(image).resize((170, 140)).save(path)
    found = audit_sources(tmp_path)[0]["shortcuts"]
    areas = found.more["auroc"]
    assert set(areas) == {"border", "size", "aspect_ratio", "brightness", "file_kind"}
    assert areas["border"]["low"] > 0.9 and areas["aspect_ratio"]["low"] > 0.9
    assert areas["file_kind"] == {"auroc": 0.5, "low": 0.5, "high": 0.5}
    assert found.verdict == "fail"
    assert clean_findings["shortcuts"].more["auroc"]["size"]["auroc"] == 0.5


@pytest.mark.slow
def test_metadata_and_source_are_measured_as_shortcuts(tmp_path):
    draw_xrays(tmp_path / "one", patients=20)
    rows = ["file_name,view,age,remark,portable"]
    for number, path in enumerate(sorted((tmp_path / "one").rglob("*.png"))):
        name = path.relative_to(tmp_path / "one").as_posix()
        rows.append(
            f"{name},{'AP' if 'PNEUMONIA' in name else 'PA'},{number % 7},text {number},"
            f"{'yes' if 'PNEUMONIA' in name and number % 4 else ''}"
        )
    (tmp_path / "one" / "metadata.csv").write_text("\n".join(rows))
    areas = audit_sources(tmp_path / "one")[0]["shortcuts"].more["auroc"]
    assert areas["metadata:view"]["auroc"] == 1
    assert 0.2 < areas["metadata:age"]["auroc"] < 0.8
    assert "metadata:remark" not in areas and "source" not in areas
    assert "metadata:portable" in areas and areas["metadata:portable"]["low"] > 0.6
    draw_xrays(tmp_path / "two", patients=20, start=500)
    shutil.rmtree(tmp_path / "two" / "NORMAL")
    assert audit_sources(tmp_path / "one")[0]["shortcuts"].more["not_measured"] == ["remark"]
    findings, _ = audit_sources([str(tmp_path / "one"), str(tmp_path / "two")])
    assert findings["shortcuts"].more["auroc"]["source"]["auroc"] > 0.6


def test_ages_of_a_dicom_header_are_measured_however_many_there_are():
    from pneumonia_hf.audit.shortcuts import _as_numbers

    ages = np.array([*(f"{number:03}M" for number in range(24)), "002Y", None, "7"], object)
    years = _as_numbers(ages)[:, 0]
    assert years[6] == 0.5 and years[[24, 26]].tolist() == [2, 7] and np.isnan(years[25])


def test_a_column_that_may_be_the_label_itself_is_named(tmp_path):
    for name, start in (("NORMAL", 0), ("PNEUMONIA", 20), ("OTHER", 40)):
        draw_xrays(tmp_path / "drawn", patients=20, start=start)
        shutil.copytree(tmp_path / "drawn" / "NORMAL", tmp_path / "x" / name)
        shutil.rmtree(tmp_path / "drawn")
    names = sorted(path.relative_to(tmp_path / "x").as_posix() for path in tmp_path.rglob("*.png"))
    rows = [
        f"{name},{name.split('/')[0].lower()},{number % 3}" for number, name in enumerate(names)
    ]
    (tmp_path / "x" / "metadata.csv").write_text("\n".join(["file_name,finding,ward", *rows]))
    found = audit_sources(f"one_vs_rest:{tmp_path / 'x'}")[0]["shortcuts"]
    assert "metadata:finding" in found.more["auroc"]
    assert "metadata:class" not in found.more["auroc"]  # ours, from which the label was made
    plain = tmp_path / "plain"
    draw_xrays(plain, patients=20)
    names = sorted(path.relative_to(plain).as_posix() for path in plain.rglob("*.png"))
    rows = [f"{name},{number % 2}" for number, name in enumerate(names)]
    (plain / "metadata.csv").write_text("\n".join(["file_name,class", *rows]))
    assert "metadata:class_" in audit_sources(plain)[0]["shortcuts"].more["auroc"]
    assert found.text.endswith(" Each value of finding has one label: it may be the label itself.")


def test_too_few_patients_are_reported(tmp_path):
    draw_xrays(tmp_path, patients=3)
    findings, _ = audit_sources(tmp_path, FeatureConfig("pixels"))
    assert findings["label_suspects"].verdict == findings["shortcuts"].verdict == "warn"
    assert "too few patients" in findings["shortcuts"].text
