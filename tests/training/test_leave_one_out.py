"""Leave one site out: what is trained on, what is scored, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from helpers import TINY_SIZES, assert_one_sentence, call_script, draw_folder, save_tiny_body
from sklearn.metrics import roc_auc_score

from pneumonia_hf import Predictor
from pneumonia_hf.data.file_hashes import hash_content, hash_images, to_hex
from pneumonia_hf.data.load import DataConfig, load_splits
from pneumonia_hf.errors import UserError
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.statistics.intervals import Interval
from pneumonia_hf.training import leave_one_out as module
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.leave_one_out import LeftOut, leave_one_site_out
from pneumonia_hf.training.recipe import Recipe


@pytest.mark.slow
def test_each_site_is_scored_by_a_model_that_has_not_seen_it(tmp_path):
    one = draw_folder(tmp_path / "one", patients=16)
    two = draw_folder(tmp_path / "two", patients=17, seed=7000)
    hashes = to_hex(hash_images(load_splits(one)["all"]))
    listed = tmp_path / "listed.txt"
    listed.write_text("\n".join(hashes[:4]))
    excluded = to_hex(hash_images(load_splits(two)["all"]))[::33]  # one of each class
    # One image of `one` is in the training data of its model: it is not scored.
    first = sorted((one / "PNEUMONIA").iterdir())[0]
    shutil.copy(first, two / "PNEUMONIA" / "person77_virus_1.png")
    (tmp_path / "excluded.txt").write_text("\n".join(excluded))
    body = save_tiny_body("xray-cnn", tmp_path / "body")
    flags = ["--backbone", "xray-cnn", "--weights", body, "--image_size", TINY_SIZES["xray-cnn"]]
    flags += ["--data_dir", f"a={one}", f"b={two}", "--output_dir", tmp_path / "runs"]
    flags += ["--max_steps", 4, "--cpu_threads", 1, "--bootstrap_resamples", 20]
    flags += ["--threshold_resamples", 20, "--attribution_images", 0, "--report_to", "none"]
    flags += ["--smallest_validation", 0, "--test_images", listed, "--resume"]
    flags += ["--metric_for_best_model", "auroc"]
    flags += ["--exclude_images", tmp_path / "excluded.txt"]
    done = call_script("leave_one_site_out.py", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "runs" / "leave_one_site_out.json").read_text())
    assert [(row["site"], row["trained_on"]) for row in found] == [("a", ["b"]), ("b", ["a"])]
    assert [row["images"] for row in found] == [32 - 4 - 1, 35 - 2 - 1]
    for row, other in zip(found, (two, one), strict=True):
        text = (tmp_path / "runs" / row["model"] / "run.json").read_text()
        run = json.loads(text)
        assert str(tmp_path) not in text and run["data"]["test_images"] == ["listed.txt"]
        used = {h for split in run["hashes"].values() for h in split}
        assert used and not used & set(excluded)
        assert used <= set(to_hex(hash_images(load_splits(other)["all"])))
    # Scored by the saved model, on all images that are not listed.
    data = load_splits(one)["all"]
    left_out = {*hashes[:4], *to_hex([hash_content(first.read_bytes())])}
    rows = [row for row, digits in enumerate(hashes) if digits not in left_out]
    predictor = Predictor.from_pretrained(tmp_path / "runs" / "without-a")
    paths = [one / data["file"][row] for row in rows]
    scores = [prediction.probability for prediction in predictor.predict_files(paths)]
    expected = roc_auc_score(np.array(data["label"][:])[rows], scores)
    assert found[0]["auroc"]["value"] == pytest.approx(expected)
    assert "| a | b | 27 |" in done.stdout and "`listed.txt` and `excluded.txt`" in done.stdout
    # A complete search repeats nothing.
    again = call_script("leave_one_site_out.py", *flags)
    assert again.stdout.count("is complete already") == 2


@pytest.mark.parametrize(
    ("other_class", "box_weight", "words"),
    [
        (True, 0, "Without b: No training image is of a class besides"),
        (False, 0.5, "Without b: no training image has a box"),
    ],
)
def test_what_the_rest_lacks_is_said_before_the_first_run(
    tmp_path, monkeypatch, other_class, box_weight, words
):
    sources = [draw_folder(tmp_path / name, patients=6) for name in ("a", "b")]
    other = sources[1] / "Effusion"
    other.mkdir()
    for number, path in enumerate(sorted((sources[1] / "NORMAL").iterdir())[:2]):
        path.rename(other / f"IM-000{number}-0009.png")
    boxes = [f"{path.relative_to(sources[1])},0.1 0.1 0.2 0.2" for path in
             sorted((sources[1] / "PNEUMONIA").iterdir())]  # fmt: skip
    (sources[1] / "metadata.csv").write_text("\n".join(["file_name,boxes", *boxes]))
    monkeypatch.setattr(module, "run_recipe", lambda *_: pytest.fail("a run has begun"))
    recipe = Recipe(
        DataConfig([f"a={sources[0]}", f"b=one_vs_rest:{sources[1]}"]),
        ModelConfig("xray-cnn", other_class=other_class),
    )
    arguments = XrayTrainingArguments(output_dir=str(tmp_path / "runs"), box_weight=box_weight)
    with pytest.raises(UserError, match=words):
        leave_one_site_out(recipe, arguments)


def test_all_sources_of_a_hospital_are_left_out_together(tmp_path, monkeypatch):
    calls = []
    scored = LeftOut("", (), 1, Interval(0.5), Interval(0.5), Interval(0.5), 0.5, "")
    monkeypatch.setattr(
        module, "run_recipe", lambda recipe, arguments: calls.append((recipe.data, arguments))
    )
    monkeypatch.setattr(
        module, "_score", lambda *found: (calls[-1][0].data_dir and calls.append(found)) or scored
    )
    data = DataConfig(["a=A", "b=B", "c=C", "d=D"], hospitals=["north=a,c"])
    arguments = XrayTrainingArguments(output_dir=str(tmp_path))
    leave_one_site_out(Recipe(data, ModelConfig("xray-cnn")), arguments)
    runs, scores = calls[::2], calls[1::2]
    assert [sorted(run.data_dir) for run, _ in runs] == [
        ["b=B", "d=D"], ["a=A", "c=C", "d=D"], ["a=A", "b=B", "c=C"],
    ]  # fmt: skip
    assert [found[1:3] for found in scores] == [
        ("north", ["a=A", "c=C"]), ("b", ["b=B"]), ("d", ["d=D"])
    ]  # fmt: skip
    assert "north=a,c" in runs[1][0].hospitals and "north=a,c" not in runs[0][0].hospitals


def test_one_hospital_is_refused(tmp_path, xray_folder):
    flags = ["--data_dir", xray_folder, "--output_dir", tmp_path / "runs"]
    assert_one_sentence(call_script("leave_one_site_out.py", *flags), "two hospitals or more")


def test_a_teacher_is_refused(tmp_path, xray_folder):
    flags = ["--data_dir", f"a={xray_folder}", f"b={xray_folder}", "--teacher", "runs/BIG"]
    done = call_script("leave_one_site_out.py", *flags, "--output_dir", tmp_path / "runs")
    assert_one_sentence(done, "Leave --teacher out: it may have seen the site")
