"""What the page and the endpoints ask of the model, without a server."""

import io
import json
import zipfile

import numpy as np
import pytest
from helpers import draw_xray

from pneumonia_hf import Predictor
from pneumonia_hf.demo.batch_table import to_csv
from pneumonia_hf.demo.engine import BatchRow, Engine
from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.errors import UserError


def make_zip(**contents: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "xray.png"
    draw_xray(4, ill=True, size=(300, 240)).save(path)
    return path


@pytest.fixture
def engine(tiny_model):
    return Engine(Predictor.from_pretrained(tiny_model), Limits(upload_mb=1, batch=3))


def test_a_batch_is_bounded(engine, image, tmp_path, monkeypatch):
    read, asked = zipfile.ZipExtFile.read, []
    monkeypatch.setattr(
        zipfile.ZipExtFile, "read", lambda self, n=-1: asked.append(n) or read(self, n)
    )

    many = tmp_path / "many.zip"
    many.write_bytes(make_zip(**{f"{n}.png": image.read_bytes() for n in range(9)}))
    with pytest.raises(UserError, match="more than 3 images"):
        list(engine.score(engine.open_batch([str(many)])))
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(make_zip(**{"a.png": b"\0" * 3_000_000}))
    assert bomb.stat().st_size < 10_000
    ((row,),) = engine.score(engine.open_batch([str(bomb)]))
    assert row.prediction is None and "more than the 1 MB allowed" in row.fault
    assert all(0 <= one <= 1_000_001 for one in asked)  # never all of an entry, whatever its size
    torn = tmp_path / "torn.zip"
    torn.write_bytes(many.read_bytes()[:700])
    ((row,),) = engine.score(engine.open_batch([str(torn)]))
    assert row.prediction is None and "torn.zip" in row.fault
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG" + b"\0" * 2_000_000)
    ((row,),) = engine.score(engine.open_batch([str(large)]))
    assert "more than the 1 MB" in row.fault
    for name in ("gone.zip", "gone.png"):  # deleted after KEPT_SECONDS
        ((row,),) = engine.score(engine.open_batch([str(tmp_path / name)]))
        assert row.prediction is None and "upload the file again" in row.fault


def test_images_in_a_zip_file_are_found_by_their_first_bytes(image, tmp_path, monkeypatch):
    engine = Engine.__new__(Engine)  # without a model
    engine.limits = Limits()
    data = image.read_bytes()
    contents = {"a.jfif": data, "b": data, "c.png": data, "notes.txt": data, "d": b"text"}
    (tmp_path / "x.zip").write_bytes(make_zip(**contents, **{".e": data, "__MACOSX/f.png": data}))
    batch = engine.open_batch([str(tmp_path / "x.zip")])
    assert batch.files == (("a.jfif", data), ("b", data), ("c.png", data))
    # And of each other one it is said why.
    assert batch.skipped == (
        ("notes.txt", "its name is not that of an image"),
        ("d", "it does not begin as an image does"),
        (".e", "its name is not that of an image"),
        ("__MACOSX/f.png", "written by macOS beside the files"),
    )
    monkeypatch.setattr("pneumonia_hf.demo.engine.MOST_SKIPPED", 2)
    assert len(engine.open_batch([str(tmp_path / "x.zip")]).skipped) == 2


def test_files_of_a_zip_keep_their_folders_and_lead_nowhere(tmp_path):
    engine = Engine.__new__(Engine)  # without a model
    engine.limits = Limits()
    names = {
        "PAT1/IM0001.dcm": "PAT1/IM0001.dcm",
        "PAT2/IM0001.dcm": "PAT2/IM0001.dcm",
        "PAT3\\.\\a.png": "PAT3/a.png",
        "/etc/b.png": "etc/b.png",
        "//c.png": "c.png",
        "C:\\in/d.png": "in/d.png",
        "PAT4/../../e..png": "PAT4/e..png",
        "../=1+1/f.png": "=1+1/f.png",
    }
    hidden = ("PAT1/.g.png", "PAT1\\.h.png", "PAT.png/i.txt", "..")
    path = tmp_path / "x.zip"
    path.write_bytes(make_zip(**dict.fromkeys((*names, *hidden), b"x")))
    batch = engine.open_batch([str(path)])
    found = [name for name, _ in batch.files]
    assert found == list(names.values())
    skipped = ["PAT1/.g.png", "PAT1/.h.png", "PAT.png/i.txt", ".."]
    assert [name for name, _ in batch.skipped] == skipped
    table = to_csv([BatchRow(name, None, "", None) for name in found])
    assert "\n'=1+1/f.png," in table and "\nPAT2/IM0001.dcm," in table


def test_all_zips_of_a_request_share_one_budget(tiny_model, image, tmp_path, monkeypatch):
    read, got = zipfile.ZipExtFile.read, []

    def read_and_count(self, n=-1):
        got.append(read(self, n))
        return got[-1]

    def zips(number: int, **contents: bytes) -> list[str]:
        paths = [tmp_path / f"{one}.zip" for one in range(number)]
        for path in paths:
            path.write_bytes(make_zip(**contents))
        got.clear()
        return list(map(str, paths))

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read_and_count)
    predictor = Predictor.from_pretrained(tiny_model)
    engine = Engine(predictor, Limits(upload_mb=1, batch=20, unzipped_mb=3))
    xray = image.read_bytes()
    # A part of the limit in each: all are read, and scored.
    batch = engine.open_batch(zips(9, **{"a.png": xray}))
    rows = [one for some in engine.score(batch) for one in some]
    assert len(rows) == 9 and all(one.prediction for one in rows)
    for size in (900_000, 5_000_000):  # an image that may be uploaded, and one that may not
        bombs = zips(9, **{"a.png": bytes(size), "b.png": bytes(size)})
        with pytest.raises(UserError, match=r"hold more than 3 MB; send them in parts"):
            list(engine.score(engine.open_batch(bombs)))
        assert sum(map(len, got)) <= 3_000_000 + 1
    with pytest.raises(UserError, match="more than 20 images"):
        engine.open_batch(zips(9, **{f"{n}.png": xray for n in range(8)}))
    assert len(got) <= 21
    with pytest.raises(UserError, match="more than 20 images"):
        engine.open_batch(zips(21, **{"readme.txt": b"no image"}))
    with pytest.raises(UserError, match="took longer than"):
        slow = Engine(predictor, Limits(seconds=0))
        slow.open_batch(zips(3, **{"readme.txt": b"no image"}))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_python_would_unzip_at_once_is_not_unzipped(engine, tmp_path, method):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", bytes(3_000_000))
    ((row,),) = engine.score(engine.open_batch([str(path)]))
    assert row.prediction is None and "zip it again with deflate" in row.fault


def test_an_image_that_is_too_large_hides_no_other_of_its_zip(engine, image, tmp_path):
    path = tmp_path / "mixed.zip"
    path.write_bytes(make_zip(**{"a.png": bytes(3_000_000), "b.png": image.read_bytes()}))
    ((large, other),) = engine.score(engine.open_batch([str(path)]))
    assert "more than the 1 MB allowed" in large.fault and other.prediction is not None


def test_only_a_method_that_passed_its_tests_is_the_default(tiny_model, tmp_path):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    predictor = Predictor.from_pretrained(model)
    untested = Engine(predictor, Limits())
    assert (untested.default_method, untested.offered_method) == (None, "cam")
    assert untested.title_of("cam") == "Class activation map"
    assert untested.verdict_of("cam") == "not tested"

    def test_of(best, **verdicts):
        results = [
            {"method": name, "verdict": one, "sentence": f"It is a {one}."}
            for name, one in verdicts.items()
        ]
        return {"data": "x", "faithfulness": {"best": best, "results": results}}

    first = test_of("occlusion", cam="fail", occlusion="pass")
    second = test_of("cam", cam="pass")
    (model / "reports.json").write_text(json.dumps([{"data": "old"}, first, second, first]))
    engine = Engine(predictor, Limits())
    assert engine.default_method == engine.offered_method == "occlusion"
    assert engine.verdict_of("cam") == "failed a test"
    assert engine.verdict_of("occlusion") == "passed its tests"
    both = "It is a fail. It is a pass."
    assert engine.sentences == {"cam": both, "occlusion": "It is a pass."}
    # The best by one report failed by another.
    third = test_of(None, occlusion="fail")
    for reports, default, offered in (
        ([first, third], None, "cam"),
        ([second, third], "cam", "cam"),
        ([test_of(None, cam="fail")], None, "occlusion"),
        ([test_of(None, **dict.fromkeys(engine.methods, "fail"))], None, "cam"),
    ):
        (model / "reports.json").write_text(json.dumps(reports))
        engine = Engine(predictor, Limits())
        assert (engine.default_method, engine.offered_method) == (default, offered)


def test_reports_of_an_earlier_version_name_methods_that_are_gone(tiny_model, tmp_path):
    """And have no sentences. What they say of the methods that are left stays."""
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    results = [
        {"method": "random", "verdict": ""},
        {"method": "gradcam", "verdict": "pass"},
        {"method": "occlusion", "verdict": "fail"},
    ]
    old = {"data": "x", "faithfulness": {"best": "gradcam", "results": results}}
    (model / "reports.json").write_text(json.dumps([old]))
    engine = Engine(Predictor.from_pretrained(model), Limits())
    assert engine.verdicts == {"occlusion": "fail"} and engine.sentences == {"occlusion": ""}
    assert (engine.default_method, engine.offered_method) == (None, "cam")


def test_a_mask_hides_the_border_and_a_part_and_nothing_else():
    from pneumonia_hf.demo.engine import FILLS, mask

    image = draw_xray(4, ill=True, size=(200, 100))
    before = np.asarray(image)
    hidden = np.ones((100, 200), bool)
    hidden[10:90, 20:180] = False
    hidden[40:60, 50:100] = True
    for fill in FILLS:
        found = np.asarray(mask(image, 0.1, (0.25, 0.4, 0.5, 0.6), fill))
        assert (found[~hidden] == before[~hidden]).all()
        assert (found[hidden] != before[hidden]).mean() > 0.5
    assert (np.asarray(mask(image, 0.1, (0.25, 0.4, 0.5, 0.6)))[hidden] == 0).all()
    assert np.array_equal(np.asarray(mask(image, 0, None)), before)
