"""Ranges of hyper-parameters: what is read, what is refused, and where the values go."""

from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from search_runs import FAMILY, make_arguments, make_recipe, write_ranges

from pneumonia_hf.errors import UserError
from pneumonia_hf.search.space import apply_values, read_ranges


def read(tmp_path: Path, ranges: object) -> dict:
    arguments = make_arguments(tmp_path / "x")
    return read_ranges(
        Path(write_ranges(tmp_path, ranges)), make_recipe("none", tmp_path), arguments
    )


def test_ranges_take_the_type_of_their_field(tmp_path):
    ranges = {
        "weight_decay": ["1e-5", 1, "log"],
        "mixup": [0, 1],
        "early_stopping_patience": {"choices": [0, 2]},
        "drop_path": {"choices": [None, 0, 0.25]},
        "per_device_train_batch_size": [4, 32, "log"],
        "stages": {"choices": [["head:1:1e-3", "all:2:1e-4"], "all:3:1e-4"]},
    }
    found = read(tmp_path, ranges)
    assert found == {
        "weight_decay": FloatDistribution(1e-5, 1.0, log=True),
        "mixup": FloatDistribution(0.0, 1.0),
        "early_stopping_patience": CategoricalDistribution([0, 2]),
        "drop_path": CategoricalDistribution([None, 0.0, 0.25]),
        "per_device_train_batch_size": IntDistribution(4, 32, log=True),
        "phases": CategoricalDistribution(["head:1:1e-3 all:2:1e-4", "all:3:1e-4"]),
    }
    assert list(found) == sorted(found)


def test_values_reach_recipe_and_arguments(tmp_path):
    values = {"phases": "head:1:1e-3 all:2:1e-4", "drop_path": 0.1, "augment_blur": 0.5}
    recipe, arguments = apply_values(
        values | {"per_device_train_batch_size": 7, "optim": "adamw_torch"},
        make_recipe("none", tmp_path),
        make_arguments(tmp_path / "x", precision="bf16"),
    )
    assert arguments.phases == ["head:1:1e-3", "all:2:1e-4"]
    assert (recipe.model.drop_path, recipe.augment.augment_blur) == (0.1, 0.5)
    assert arguments.per_device_train_batch_size == 7 and arguments.bf16
    assert (recipe.model.backbone, arguments.num_train_epochs) == (FAMILY, 2)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({"learning_rte": [0, 1]}, "did you mean learning_rate"),
        ({"seed": [1, 9]}, "'seed', which cannot be searched: it would change what is compared"),
        ({"validation_fraction": [0.1, 0.2]}, "cannot be searched"),
        ({"metric_for_best_model": {"choices": ["auroc", "loss"]}}, "cannot be searched"),
        ({"learning_rate": 3}, "3 is not \\[low, high\\]"),
        ({"learning_rate": [1, 2, "logarithm"]}, "is not \\[low, high\\]"),
        ({"learning_rate": {"choice": [1, 2]}}, "is not \\[low, high\\]"),
        ({"learning_rate": ["a", 2]}, "'a' is not a number"),
        ({"learning_rate": [0.0, float("inf")]}, "inf is not a number"),
        ({"learning_rate": [2, 1]}, "low <= high"),
        ({"learning_rate": [0, 1, "log"]}, "low > 0"),
        ({"learning_rate": [-1, 1]}, "learning_rate is -1.0; give 0 or more"),
        ({"mixup": [0, None]}, "is not a range of numbers"),
        ({"per_device_train_batch_size": [1.5, 3]}, "1.5 is not a whole number"),
        ({"imbalance": ["weights", "none"]}, "is not a range of numbers"),
        ({"imbalance": {"choices": ["weights", "weight"]}}, "Unknown imbalance 'weight'"),
        ({"imbalance": {"choices": ["weights"]}}, "two choices"),
        ({"lr_scheduler_type": {"choices": ["cosine", "cosin"]}}, "cosin"),
        ({"stages": {"choices": [["head:1:1"], ["tail:1:1"]]}}, "tail:1:1"),
        ({"augment_flip": [0, 2]}, "augment_flip is 2.0"),
        ({"stages": {"choices": ["all:1:1", "all:2:1"]}, "learning_rate": [0, 1]}, "phases set"),
        ([1], "must hold lines"),
    ],
)
def test_ill_formed_ranges_are_refused_with_a_sentence(tmp_path, ranges, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, ranges)


def test_example_ranges_are_valid(tmp_path):
    path = ROOT / "train_scripts" / "configs" / "search.yaml"
    arguments = make_arguments(tmp_path / "x")
    assert "learning_rate" in read_ranges(path, make_recipe("none", tmp_path), arguments)
    # What is commented out is an example too, if not all of it together.
    lines = [line.removeprefix("# ") for line in path.read_text().splitlines()]
    others = yaml.safe_load("\n".join(lines[lines.index("mixup: {choices: [0.0, 0.2, 0.4]}") :]))
    assert len(others) == 7
    for name, entry in others.items():
        assert list(read(tmp_path, {name: entry})) == [name]
