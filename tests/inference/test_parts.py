"""Scoring in parts: each image once, with any number of processes, and no part twice."""

import os
import subprocess

import pytest
from helpers import LAUNCHER, ROOT, assert_one_sentence, call_script, draw_folder
from pyarrow import parquet

from pneumonia_hf import Predictor
from pneumonia_hf.errors import UserError, XrayError
from pneumonia_hf.inference import parts, read_ahead
from pneumonia_hf.inference.batch import find_inputs, write_predictions


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART", 3)
    monkeypatch.setattr(read_ahead, "CHUNK", 3)  # or images would be in other batches


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = draw_folder(tmp_path_factory.mktemp("parts") / "images", patients=5)
    (folder / "NORMAL" / "IM-0001-0000.png").write_bytes(b"not an image")
    return folder


def score(predictor, paths, folder, *which):
    return parts.score_parts(predictor, ((None, path) for path in paths), folder, *which)


def test_parts_of_several_processes_are_the_table_of_one(tiny_model, images, tmp_path, small_parts):
    predictor, paths = Predictor.from_pretrained(tiny_model), find_inputs([images])
    write_predictions(predictor, paths, str(tmp_path / "plain.csv"))
    folder = tmp_path / "out.parts"
    parts.prepare_parts(folder, ["a model"])
    assert score(predictor, paths, folder, 1, 2) == 10  # of four parts the second and fourth
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert sorted(made) == ["part-000001.parquet", "part-000003.parquet"]
    with pytest.raises(UserError, match="results of 4 of 10 images"):
        parts.merge_parts(folder, tmp_path / "out.csv", 10)
    # The rest is made by one process, as after a kill, and no part twice.
    (folder / "part-000000.unfinished").write_bytes(b"half")
    assert score(predictor, paths, folder) == 10
    assert made.items() <= {p.name: p.stat().st_mtime_ns for p in folder.glob("part-*")}.items()
    decisions, probabilities = parts.merge_parts(folder, tmp_path / "out.csv", 10)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    assert decisions.total() == 10 and decisions[None] == 1 and len(probabilities) == 9
    assert not folder.exists()


def test_parts_of_other_images_or_another_model_are_refused(tmp_path, monkeypatch):
    parts.prepare_parts(tmp_path / "p", ["model", "image"])
    parts.prepare_parts(tmp_path / "p", ["model", "image"])
    with pytest.raises(UserError, match="other images, another model"):
        parts.prepare_parts(tmp_path / "p", ["model", "imag", "e"])
    monkeypatch.setattr(parts, "PART", 64)  # as in another version
    with pytest.raises(UserError, match="another version"):
        parts.prepare_parts(tmp_path / "p", ["model", "image"])


def test_a_name_that_is_no_text_is_kept_readable(tmp_path, tiny_model):
    row = parts.to_row("caf\udce9.png", XrayError("It is torn."))
    assert parts.to_arrow([row])["file"].to_pylist() == ["caf\\xe9.png"]


@pytest.mark.slow
def test_two_processes_score_each_image_once(tiny_model, images, tmp_path):
    output = tmp_path / "out.parquet"
    flags = ["--model", tiny_model, "--input", images, "--output", output]
    command = [*LAUNCHER, ROOT / "train_scripts/predict.py", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "10 images:" in done.stdout and "1 that could not be read" in done.stdout, done.stderr
    rows = parquet.read_table(output)
    assert rows["file"].to_pylist() == sorted(map(str, images.rglob("*.png")))
    assert [*tmp_path.iterdir()] == [output]


def test_a_stream_is_scored_in_parts_and_standard_output_takes_none(tiny_model, images, tmp_path):
    from datasets import load_dataset

    data = load_dataset("imagefolder", data_dir=str(images / "PNEUMONIA"), split="train")
    data.to_parquet(tmp_path / "films.parquet")
    flags = ["--model", tiny_model, "--input", f"shards:{tmp_path / 'films.parquet'}"]
    assert_one_sentence(call_script("predict.py", *flags, "--output", "-"), "give --output a file")
    done = call_script("predict.py", *flags, "--output", tmp_path / "out.csv")
    assert done.returncode == 0 and "5 images:" in done.stdout, done.stderr
    lines = (tmp_path / "out.csv").read_text().splitlines()
    plain = tmp_path / "plain.csv"
    call_script("predict.py", *flags[:3], images / "PNEUMONIA", "--output", plain)
    expected = [line.partition(",")[2] for line in plain.read_text().splitlines()]
    assert [line.partition(",")[2] for line in lines] == expected
    assert lines[1].startswith("all/")
