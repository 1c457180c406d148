"""What a search refuses, in a sentence, and what it leaves untouched."""

import json
from dataclasses import replace

import pytest
from helpers import assert_one_sentence, call_script, draw_folder
from search_runs import RANGES, fake_runs, make_recipe, start_search, write_ranges

from pneumonia_hf.errors import UserError
from pneumonia_hf.training.arguments import XrayTrainingArguments


def test_search_of_something_else_is_not_resumed(tmp_path, xray_folder, monkeypatch):
    runs = fake_runs(monkeypatch)
    recipe = make_recipe("none", xray_folder)
    start_search(tmp_path, recipe, n_trials=1)
    other_data = draw_folder(tmp_path / "other", patients=10, seed=31)
    for words, changes in {
        "begun with other weight_decay": {"ranges": RANGES | {"weight_decay": [0, 0.1]}},
        "begun with other learning_rate": {"ranges": RANGES | {"learning_rate": [0.1, 0.2]}},
        "begun with other num_train_epochs": {"num_train_epochs": 3},
        "begun with other pruner": {"pruner": "none"},
        "begun with other .*train images": {"recipe": make_recipe("none", other_data)},
        "begun with other image_size": {
            "recipe": replace(recipe, model=replace(recipe.model, image_size=32))
        },
    }.items():
        with pytest.raises(UserError, match=words):
            start_search(tmp_path, **({"recipe": recipe} | changes), n_trials=2, resume=True)
    assert runs == ["000"]


def test_search_of_an_older_version_is_not_resumed(tmp_path, xray_folder, monkeypatch):
    runs = fake_runs(monkeypatch)
    start_search(tmp_path, make_recipe("none", xray_folder), n_trials=1)
    path = tmp_path / "search/checkpoints/recipe.json"
    record = json.loads(path.read_text())
    record["made_of"]["version of pneumonia_hf"] = "0.5"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r'other version of pneumonia_hf \("0.5", now'):
        start_search(tmp_path, make_recipe("none", xray_folder), n_trials=2, resume=True)
    assert runs == ["000"]


def test_impossible_search_is_refused_before_anything_is_written(tmp_path, xray_folder):
    recipe = make_recipe("none", xray_folder)
    for words, changes in {
        "needs evaluations": {"eval_strategy": "no", "load_best_model_at_end": False},
        "leave --seeds out": {"seeds": [1, 2]},
        "n_trials is 0": {"n_trials": 0},
        "timeout is -1": {"timeout": -1},
        "Unknown pruner 'x'; choose from": {"pruner": "x"},
        "Unknown keep 'x'; choose from": {"keep": "x"},
        "did you mean": {"ranges": {"learning": [0, 1]}},
    }.items():
        with pytest.raises(UserError, match=words):
            start_search(tmp_path, recipe, **changes)
    with pytest.raises(UserError, match="does not exist"):
        start_search(tmp_path, make_recipe("none", tmp_path / "no-data"))
    assert not (tmp_path / "search").exists()


def test_several_processes_are_refused(tmp_path, xray_folder, monkeypatch):
    monkeypatch.setattr(XrayTrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(UserError, match="one process"):
        start_search(tmp_path, make_recipe("none", xray_folder))


def test_second_search_in_the_same_folder_is_refused(tmp_path, xray_folder, monkeypatch):
    recipe = make_recipe("none", xray_folder)

    def start_second(arguments):
        with pytest.raises(UserError, match="Another search runs in"):
            start_search(tmp_path, recipe, resume=True)
        return 0.5

    runs = fake_runs(monkeypatch, start_second)
    start_search(tmp_path, recipe, n_trials=1)
    assert runs == ["000"]


def test_search_does_not_begin_in_the_folder_of_a_saved_model(tmp_path, xray_folder):
    (tmp_path / "search").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "search" / name).write_text("{}")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match=r"search holds a (saved )?model"):
            start_search(tmp_path, make_recipe("none", xray_folder), **flags)
    assert len(list((tmp_path / "search").iterdir())) == 2


def test_damaged_study_is_reported_in_a_sentence(tmp_path, xray_folder, monkeypatch):
    fake_runs(monkeypatch)
    recipe = make_recipe("none", xray_folder)
    start_search(tmp_path, recipe, n_trials=1)
    (tmp_path / "search/study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"study\.db cannot be used .*not a database"):
        start_search(tmp_path, recipe, n_trials=2, resume=True)
    start_search(tmp_path, recipe, n_trials=1, overwrite=True)


def test_folder_may_have_any_name(tmp_path, xray_folder, monkeypatch):
    folder = tmp_path / "a b%20?x#y&ä={z}"
    folder.mkdir()
    fake_runs(monkeypatch)
    start_search(folder, make_recipe("none", xray_folder), n_trials=1)
    assert (folder / "search/study.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_script_searches_and_reports_mistakes_in_a_sentence(tmp_path, xray_folder, monkeypatch):
    runs = fake_runs(monkeypatch)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("backbone: convnextv2-tiny\nnum_train_epochs: 1\nn_trials: 2\n")
    flags = ["--config", recipe, "--data_dir", xray_folder, "--output_dir", tmp_path / "search"]
    assert_one_sentence(call_script("search.py", *flags), "--ranges")
    flags += ["--ranges", write_ranges(tmp_path)]
    done = call_script("search.py", *flags)
    assert done.returncode == 0, done.stderr
    assert runs == ["000", "001"]
    assert "Trial 1 (2 of 2): augment_strength" in done.stdout
    assert f"The best model is in {tmp_path / 'search' / 'trials'}" in done.stdout
    assert_one_sentence(call_script("search.py", *flags), "--resume", "--overwrite")
    assert_one_sentence(call_script("search.py", *flags, "--mixup", "much"), "mixup")
