import json

import pytest

from pneumonia_hf.errors import UserError
from pneumonia_hf.models.model_folder import DEFAULT_MODEL
from pneumonia_hf.models.run_manifest import RunManifest, read_manifest


def write(folder, content) -> RunManifest:
    (folder / "run.json").write_text(json.dumps(content))
    return read_manifest(folder)


def test_manifest_of_a_trained_model_has_what_its_file_says(tiny_model):
    content = json.loads((tiny_model / "run.json").read_text())
    found = read_manifest(tiny_model)
    assert found.content == content and read_manifest(str(tiny_model)) == found
    assert found.run_id == content["run_id"]
    names = ("backbone", "base_model", "license")
    assert [getattr(found, name) for name in names] == [content["model"][name] for name in names]
    assert found.training.seed == content["training"]["seed"]
    assert found.training.metric_for_best_model == "auroc"
    assert found.training.best_validation_metric == content["training"]["best_validation_metric"]
    assert found.training.history == content["training"]["history"] != []
    assert found.validation.metrics == content["validation"]["metrics"] != {}
    assert found.validation.copies_auroc == content["validation"]["copies_auroc"]
    assert found.validation.threshold == content["validation"]["config"]["threshold"]
    assert found.augmentation == content["augmentation"] != {}
    assert found.hashes == {name: frozenset(of) for name, of in content["hashes"].items()}


def test_manifest_of_the_default_model_is_read():
    found = read_manifest(DEFAULT_MODEL)
    assert found.backbone == "efficientnet-lite0" and found.license == "apache-2.0"
    assert found.training.metric_for_best_model == "robust_auroc"
    assert found.hashes.keys() == {"train", "validation", "test"}
    assert all(map(len, found.hashes.values()))


def test_missing_manifest_is_empty(tmp_path):
    empty = read_manifest(tmp_path)
    assert empty.content == {} and empty.hashes == {} and empty.training.history == []
    assert empty.run_id is None and empty.validation.threshold is None
    assert read_manifest(None) == read_manifest("me/unknown") == empty


@pytest.mark.parametrize("content", [[], "text", {}, {"model": "a name", "hashes": [1]},
    {"training": None, "validation": {"metrics": 3, "config": []}, "hashes": {"train": 7}},
    {"training": {"history": "none"}, "augmentation": 1}])  # fmt: skip
def test_file_of_another_project_with_the_same_name_is_as_good_as_none(tmp_path, content):
    found, empty = write(tmp_path, content), read_manifest(None)
    assert (found.training, found.validation) == (empty.training, empty.validation)
    assert (found.hashes, found.augmentation, found.license) == ({}, {}, None)


def test_metric_of_an_older_version_loses_its_prefix(tmp_path):
    found = write(tmp_path, {"training": {"metric_for_best_model": "eval_robust_auroc"}})
    assert found.training.metric_for_best_model == "robust_auroc"


def test_damaged_manifest_is_reported_in_one_sentence(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        read_manifest(tmp_path)
