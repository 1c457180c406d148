import json
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from helpers import draw_folder

from pneumonia_hf.data.load import DataConfig, load_xrays
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.boxes import BoxedPixels
from pneumonia_hf.training.interruption import StopRequest
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run import Run, number_cells, number_classes, prepare_run

PROCESSOR = make_processor(32, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    sources = [f"b={draw_folder(folder / 'b', patients=10)}"]
    sources.append(f"a={draw_folder(folder / 'a', patients=10, seed=4000)}")
    return Recipe(DataConfig(sources, cache_dir=str(folder / "cache")), ModelConfig("xray-cnn"))


def prepare(recipe, output, **changes) -> Run:
    arguments = XrayTrainingArguments(output_dir=str(output), **changes)
    with cache_in(recipe.data.cache_dir):
        return prepare_run(PROCESSOR, load_xrays(recipe.data), recipe, arguments, (), StopRequest())


def test_prepared_run_is_complete_and_is_not_changed(tmp_path, recipe):
    run = prepare(recipe, tmp_path, phases=["head:1:1e-3", "all:1:1e-4"])
    assert [phase.name for phase in run.phases] == ["head", "all"]
    assert set(run.images.pixels) == set(run.images.fingerprints) == {"train", "validation", "test"}
    assert len(run.images.sites) == len(run.images.pixels["train"])
    names = np.array(run.images.data["train"]["source"][:])
    assert set(names[run.images.sites == 0]) == {"a"}  # by name, whatever their order
    assert (run.teacher, run.folder, run.is_main) == (None, tmp_path, True)
    assert run.validation.plain is run.images.pixels["validation"]  # with copies, by default
    assert set(vars(run)) == {field.name for field in fields(run)}
    with pytest.raises(FrozenInstanceError):
        run.run_id = "another"


def test_columns_to_balance_by_are_numbered_together():
    from datasets import Dataset

    columns = {"view": ["AP", "PA", None, "AP"], "sex": ["F", "F", "F", "M"]}
    data = Dataset.from_dict(columns | {"label": [0] * 4})
    assert len(set(number_cells(data, ["view"])[[0, 3]])) == 1
    assert len(set(number_cells(data, ["view", "sex"]))) == 4
    with pytest.raises(UserError, match=r"the column age for --balance \(they have sex, view\)"):
        number_cells(data, ["view", "age"])


def test_images_of_other_classes_are_the_third():
    from datasets import Dataset

    data = Dataset.from_dict(
        {"label": [0, 0, 1, 0, 1], "class": ["NORMAL", "EDEMA", "PNEUMONIA", None, "VIRUS"]}
    )
    assert number_classes(data).tolist() == [0, 2, 1, 0, 1]
    for without in (data.select([0, 2, 3]), data.remove_columns("class")):
        with pytest.raises(UserError, match="one_vs_rest:FOLDER, or leave --other_class out"):
            number_classes(without)


def test_resume_notices_other_columns_and_hospitals(tmp_path, recipe):
    before = prepare(recipe, tmp_path)
    (tmp_path / "checkpoints" / "phase-1" / "checkpoint-5").mkdir(parents=True)
    data = replace(recipe.data, hospitals=["one=a,b"])
    with pytest.raises(UserError, match=r"begun with other hospitals \(null, now"):
        prepare(replace(recipe, data=data), tmp_path, resume=True)
    prints = before.images.further_prints
    assert prints.keys() == {"sites of training", "classes of training"}
    state = json.loads((tmp_path / "checkpoints" / "recipe.json").read_text())
    assert {name: state["made_of"].get(f"{name} images") for name in prints} == prints
    train = before.images.train
    boxes = [None] * len(train)
    changed = BoxedPixels(**vars(train), boxes=boxes, known=np.zeros(len(train), bool))
    boxed = replace(before.images, train=changed, cells=np.arange(len(train)))
    assert boxed.further_prints.keys() - prints.keys() == {
        "boxes of training", "balanced columns of training"
    }  # fmt: skip
    others = replace(train, labels=train.labels + (train.labels == 0) * 2)
    found = replace(boxed, train=others, sites=1 - before.images.sites).further_prints
    assert all(found[name] != prints[name] for name in prints)
    boxes[0] = "0 0 1 1"
    assert (
        boxed.further_prints["boxes of training"]
        != replace(boxed, train=replace(changed, boxes=[None] * len(train))).further_prints[
            "boxes of training"
        ]
    )


def test_making_a_run_prints_and_writes_nothing(tmp_path, recipe, capsys):
    run = prepare(recipe, tmp_path, metric_for_best_model="auroc")
    assert run.validation is run.images.pixels["validation"]
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    replace(run, run_id="another")
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_audit_of_the_same_data_is_printed_once_a_process(tmp_path, recipe, capsys):
    other = replace(recipe, data=replace(recipe.data, split_seed=77))
    printed = []
    for name in ("one", "two"):
        prepare(other, tmp_path / name)
        printed.append("Audit of the data" in capsys.readouterr().out)
    assert printed == [True, False]


def test_overwrite_clears_the_checkpoints_of_the_older_run_and_resume_keeps_its_id(
    tmp_path, recipe
):
    first = prepare(recipe, tmp_path)
    checkpoint = tmp_path / "checkpoints" / "phase-1" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    assert prepare(recipe, tmp_path, resume=True).run_id == first.run_id
    assert prepare(recipe, tmp_path, overwrite=True).run_id != first.run_id
    assert not checkpoint.exists()
