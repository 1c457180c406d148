"""The search: its proposals, its report, and that an interrupted one ends like a whole one."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
import yaml
from helpers import (
    ROOT,
    TINY_SIZES,
    assert_one_sentence,
    call_script,
    draw_folder,
    save_tiny_body,
)
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from safetensors.torch import load_file

from pneumonia_hf.data.load import DataConfig
from pneumonia_hf.errors import Stopped, UserError
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.search import report as search_report
from pneumonia_hf.search import study as search
from pneumonia_hf.search.space import apply_values, read_ranges
from pneumonia_hf.search.study import SearchConfig, propose, search_recipe
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.augment import AugmentConfig
from pneumonia_hf.training.recipe import Recipe

FAMILY = "convnextv2-tiny"
RANGES = {
    "learning_rate": ["1e-4", "1e-2", "log"],
    "augment_strength": [0, 1],
    "imbalance": {"choices": ["weights", "none"]},
}
TRIALS = 3
# The loss differs between trials whose AUROC is 1 alike.
WHOLE = {"n_trials": 2, "metric_for_best_model": "loss"}


@pytest.fixture(scope="module")
def body(tmp_path_factory) -> Path:
    return save_tiny_body(FAMILY, tmp_path_factory.mktemp("body"))


def make_arguments(output: Path, **changes) -> XrayTrainingArguments:
    settings = {
        "num_train_epochs": 2,
        "precision": "fp32",
        "cpu_threads": 1,
        "report_to": ["none"],
        "disable_tqdm": True,
        "attribution_images": 0,  # these three take most of the time of a tiny run
        "bootstrap_resamples": 20,
        "threshold_resamples": 20,
    }
    return XrayTrainingArguments(output_dir=str(output), **(settings | changes))


def make_recipe(body: Path | str, data: Path, **changes) -> Recipe:
    return Recipe(
        DataConfig([str(data)], **changes),
        ModelConfig(FAMILY, str(body), TINY_SIZES[FAMILY]),
        AugmentConfig(),
    )


def write_ranges(folder: Path, ranges: object = RANGES) -> str:
    path = folder / "ranges.yaml"
    path.write_text(yaml.safe_dump(ranges))
    return str(path)


def start_search(folder: Path, recipe: Recipe, ranges=RANGES, n_trials=TRIALS, **changes) -> Path:
    changes = {"metric_for_best_model": "auroc"} | changes  # the default scores copies too
    own = {name: changes.pop(name) for name in ("timeout", "pruner", "keep") if name in changes}
    config = SearchConfig(write_ranges(folder, ranges), n_trials=n_trials, **own)
    return search_recipe(recipe, make_arguments(folder / "search", **changes), config)


def read_study(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of the search in `folder`, by number."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'search' / 'study.db'}")
    trials = optuna.load_study(study_name="search", storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    return trials


def list_trials(folder: Path) -> list[tuple]:
    keys = ("number", "state", "value", "params", "intermediate_values")
    return [tuple(getattr(one, key) for key in keys) for one in read_study(folder)]


def find_best(folder: Path) -> int:
    """Return the number of the best trial, as the page names it."""
    page = (folder / "search/search.md").read_text()
    return int(re.search(r"The best is trial (\d+),", page)[1])


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, body, xray_folder) -> Path:
    """A search that was interrupted within its second trial, after a checkpoint, and resumed."""
    folder, report = tmp_path_factory.mktemp("resumed"), search._Evaluations.on_evaluate

    def interrupt(self, args, state, control, **kwargs):
        report(self, args, state, control, **kwargs)
        if self.trial.number == 1 and state.epoch > 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(search._Evaluations, "on_evaluate", interrupt)
        monkeypatch.setattr(search_report, "draw_search", lambda *given: None)
        start_search(folder, make_recipe(body, xray_folder), **WHOLE)
    assert [one.state.name for one in read_study(folder)] == ["COMPLETE", "RUNNING"]
    start_search(folder, make_recipe(body, xray_folder), **WHOLE, resume=True)
    return folder


def fake_runs(monkeypatch, summary=lambda arguments: 1 - arguments.learning_rate) -> list[str]:
    """Put runs of no cost in the place of real ones; return the list of the folders of them.

    Args:
        monkeypatch: pytest's.
        summary: gives the metric of a run, or raises what the run is to raise.
    """
    runs = []

    def run(recipe, arguments, callbacks):
        runs.append(Path(arguments.output_dir).name)
        value = summary(arguments)
        folder = Path(arguments.output_dir)
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text("{}")
        history = [{"eval_auroc": 0.9}, {"eval_auroc": 0.25}]
        training = {"best_validation_metric": value, "epochs_run": 2, "history": history}
        (folder / "run.json").write_text(json.dumps({"training": training}))

    monkeypatch.setattr(search, "run_recipe", run)
    # What takes long: the figure, and looking for memory to free.
    monkeypatch.setattr(search_report, "draw_search", lambda *given: None)
    monkeypatch.setattr(search, "clear_device_cache", lambda **given: None)
    return runs


# ---- Ranges


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


# ---- What is proposed

RATES = {"learning_rate": FloatDistribution(0.0, 1.0), "mixup": FloatDistribution(0.0, 1.0)}


def make_trials(count: int, failing=lambda rate: False) -> list[optuna.trial.FrozenTrial]:
    trials = []
    for _ in range(count):
        values = propose(trials, RATES, "maximize", seed=13)
        rate = values["learning_rate"]
        ended = {"state": TrialState.FAIL}
        if not failing(rate):
            ended = {"state": TrialState.COMPLETE, "value": -((rate - 0.4) ** 2)}
        trials.append(create_trial(params=values, distributions=RATES, **ended))
    return trials


def test_proposals_follow_from_the_seed_and_earlier_trials_alone():
    trials = make_trials(14)
    for count in (0, 3, 11):
        again = propose(trials[:count], RATES, "maximize", seed=13)
        assert again == trials[count].params
        assert propose(trials[:count], RATES, "maximize", seed=14) != again
    assert len({one.params["learning_rate"] for one in trials}) == 14


def test_proposals_concentrate_where_values_were_good():
    rates = [one.params["learning_rate"] for one in make_trials(40)]
    assert sum(abs(rate - 0.4) < 0.15 for rate in rates[20:]) > 9  # of 20; by chance 6
    assert sum(abs(rate - 0.4) < 0.15 for rate in rates[:10]) < 6


def test_proposals_avoid_where_trials_failed():
    trials = make_trials(30, failing=lambda rate: rate > 0.15)
    late = [one.state for one in trials[15:]]
    assert late.count(TrialState.FAIL) < 10  # of 15; by chance 13


# ---- Whole searches


def test_best_trial_is_that_of_the_best_validation_metric(resumed):
    trials = read_study(resumed)
    assert [one.state.name for one in trials] == ["COMPLETE"] * 2
    assert trials[find_best(resumed)].value == min(one.value for one in trials)
    assert trials[0].value != trials[1].value
    for one in trials:
        run = json.loads((resumed / f"search/trials/{one.number:03}/run.json").read_text())
        values = [entry["eval_loss"] for entry in run["training"]["history"]]
        assert list(one.intermediate_values) == [1, 2]
        assert list(one.intermediate_values.values()) == values
        assert one.value == run["training"]["best_validation_metric"] == min(values)
        assert run["training"]["learning_rate"] == one.params["learning_rate"]
        assert run["augmentation"]["augment_strength"] == one.params["augment_strength"]


def test_only_the_best_trial_keeps_its_weights(resumed):
    best = f"{find_best(resumed):03}"
    trials = resumed / "search" / "trials"
    assert {path.parts[-2] for path in trials.glob("*/model.safetensors")} == {best}
    assert {path.relative_to(trials).parts[0] for path in trials.rglob("*.pt")} == {best}
    for folder in trials.iterdir():
        assert (folder / "run.json").exists() and (folder / "training_curves.png").exists()
    large = [path for path in trials.rglob("*") if path.is_file() and path.stat().st_size > 200_000]
    assert {path.relative_to(trials).parts[0] for path in large} <= {best}


def test_report_describes_each_trial_and_warns_of_the_bias(resumed):
    with (resumed / "search/trials.csv").open() as file:
        rows = {int(row["number"]): row for row in csv.DictReader(file)}
    best = find_best(resumed)
    assert next(iter(rows)) == best
    for one in read_study(resumed):
        row = rows[one.number]
        assert (row["state"], float(row["value"])) == ("COMPLETE", one.value)
        assert float(row["learning_rate"]) == one.params["learning_rate"]
        assert row["imbalance"] == one.params["imbalance"] and int(row["seconds"]) >= 0
    page = (resumed / "search/search.md").read_text()
    assert "winner's\ncurse" in page and "validation" in page and "2 COMPLETE" in page
    assert f"{float(rows[best]['learning_rate']):.4g}" in page
    assert "- learning_rate: FloatDistribution(high=0.01, log=True, low=0.0001" in page
    with Image.open(resumed / "search/search.png") as figure:
        assert figure.format == "PNG" and figure.width > 1000
        assert min(figure.convert("L").getextrema()) < 100
    assert not list((resumed / "search").glob(".*unfinished"))


@pytest.mark.slow
def test_best_recipe_trains_the_best_model_again(resumed, tmp_path):
    flags = ["--output_dir", tmp_path / "again", "--cpu_threads", 1]
    done = call_script("train.py", "--config", resumed / "search/best.yaml", *flags)
    assert done.returncode == 0, done.stderr
    best = resumed / "search/trials" / f"{find_best(resumed):03}"
    one, two = (load_file(folder / "model.safetensors") for folder in (best, tmp_path / "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import test_study
from pneumonia_hf.search import study

report = study._Evaluations.on_evaluate

def on_evaluate(self, args, state, control, **kwargs):
    report(self, args, state, control, **kwargs)
    if self.trial.number == 1 and state.epoch > 1:
        os.kill(os.getpid(), signal.SIGKILL)

study._Evaluations.on_evaluate = on_evaluate
recipe = test_study.make_recipe({body!r}, Path({data!r}))
test_study.start_search(Path({folder!r}), recipe, **test_study.WHOLE)
"""


@pytest.mark.slow
def test_killed_search_ends_like_an_uninterrupted_one(resumed, tmp_path, body, xray_folder):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    start_search(whole, make_recipe(body, xray_folder), **WHOLE)
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    code = KILLED.format(paths=paths, folder=str(killed), body=str(body), data=str(xray_folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert len(read_study(killed)) == 2
    # Within the second trial: after its first checkpoint, and before the second.
    (checkpoint,) = (killed / "search/trials/001").rglob("checkpoint-*")
    before = (checkpoint / "trainer_state.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="--resume"):
        start_search(killed, make_recipe(body, xray_folder), **WHOLE)
    start_search(killed, make_recipe(body, xray_folder), **WHOLE, resume=True, keep="all")
    assert list_trials(killed) == list_trials(resumed) == list_trials(whole)
    assert (checkpoint / "trainer_state.json").stat().st_mtime_ns == before
    best = f"search/trials/{find_best(whole):03}/model.safetensors"
    one, two, three = (load_file(folder / best) for folder in (whole, killed, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.slow
def test_complete_search_repeats_nothing_and_continues_with_more_trials(
    tmp_path, xray_folder, monkeypatch
):
    runs, recipe = fake_runs(monkeypatch), make_recipe("none", xray_folder)
    start_search(tmp_path, recipe, n_trials=2)
    start_search(tmp_path, recipe, n_trials=2, resume=True)
    assert runs == ["000", "001"]
    start_search(tmp_path, recipe, n_trials=4, resume=True, keep="all")
    assert runs == ["000", "001", "002", "003"]
    resumed = list_trials(tmp_path)
    start_search(tmp_path, recipe, n_trials=4, overwrite=True)
    assert runs[4:] == runs[:4]
    assert list_trials(tmp_path) == resumed


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, xray_folder) -> list[tuple]:
    """The trials of a search of runs of no cost, which nothing interrupted."""
    folder = tmp_path_factory.mktemp("quiet")
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_runs(monkeypatch)
        start_search(folder, make_recipe("none", xray_folder))
    return list_trials(folder)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "No space left on device"),
        pytest.param(Stopped("Stopped by SIGTERM."), marks=pytest.mark.slow),
        pytest.param(ZeroDivisionError("a fault of ours"), marks=pytest.mark.slow),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_that_ends_the_search_leaves_its_trial_to_be_continued(
    error, quiet, tmp_path, xray_folder, monkeypatch
):
    recipe = make_recipe("none", xray_folder)

    def break_off(arguments):
        if arguments.output_dir.endswith("001"):
            raise error
        return 1 - arguments.learning_rate

    fake_runs(monkeypatch, break_off)
    with pytest.raises(type(error)):
        start_search(tmp_path, recipe)
    assert not (tmp_path / "search/trials/002").exists()
    runs = fake_runs(monkeypatch)
    start_search(tmp_path, recipe, resume=True)
    assert runs == ["001", "002"]
    assert list_trials(tmp_path) == quiet


def test_sigterm_between_trials_ends_the_search_resumable(tmp_path, xray_folder, monkeypatch):
    fake_runs(monkeypatch, lambda arguments: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="--resume"):
        start_search(tmp_path, make_recipe("none", xray_folder))
    assert signal.getsignal(signal.SIGTERM) is before
    runs = fake_runs(monkeypatch)
    start_search(tmp_path, make_recipe("none", xray_folder), resume=True)
    assert runs == ["000", "001", "002"]


@pytest.mark.slow
def test_failed_trial_is_reported_and_the_search_continues(tmp_path, body, xray_folder):
    ranges = {"learning_rate": {"choices": [1e-3, 1e30]}}
    start_search(tmp_path, make_recipe(body, xray_folder), ranges, n_trials=2, num_train_epochs=1)
    good, bad = sorted(read_study(tmp_path), key=lambda one: one.state)
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.FAIL)
    assert bad.value is None and "diverged" in bad.user_attrs["error"]
    page = (tmp_path / "search/search.md").read_text()
    assert f"- Trial {bad.number} failed: Training has diverged" in page
    assert yaml.safe_load((tmp_path / "search/best.yaml").read_text())["learning_rate"] == 1e-3


def test_search_in_which_all_fails_ends_with_the_reason(tmp_path, xray_folder, monkeypatch):
    def fail(arguments):
        raise UserError("The weights folder x does not exist.")

    runs = fake_runs(monkeypatch, fail)
    with pytest.raises(UserError, match=r"All 3 trials failed.*The weights folder x does not"):
        start_search(tmp_path, make_recipe("none", xray_folder), n_trials=9)
    assert len(runs) == 3
    assert not (tmp_path / "search/best.yaml").exists()


def test_accelerator_without_enough_memory_fails_the_trial_alone(
    tmp_path, xray_folder, monkeypatch
):
    def run_out(arguments):
        if arguments.output_dir.endswith("000"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.8

    fake_runs(monkeypatch, run_out)
    start_search(tmp_path, make_recipe("none", xray_folder), n_trials=2)
    assert "memory is too small" in read_study(tmp_path)[0].user_attrs["error"]


@pytest.mark.slow
def test_trial_below_the_median_is_pruned_in_a_later_phase(
    tmp_path, body, xray_folder, monkeypatch
):
    from pneumonia_hf.training import train as training

    scores = iter([0.9, 0.8, 0.95, 0.85, 0.7])
    monkeypatch.setattr(
        training,
        "compute_validation_metrics",
        lambda prediction, validation: {"auroc": next(scores)},
    )
    eager = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0)
    monkeypatch.setitem(search.PRUNERS, "median", eager)
    phases = ["head:1:1e-3", "all:2:1e-3"]
    ranges = {"weight_decay": [0.01, 0.1]}
    scores = iter([0.9, 0.8, 0.95, 0.91, 0.7, 0.6])
    start_search(
        tmp_path,
        make_recipe(body, xray_folder),
        ranges,
        n_trials=2,
        phases=phases,
        report_to=["tensorboard"],
    )
    first, second = read_study(tmp_path)
    assert first.intermediate_values == {1: 0.9, 2: 0.8, 3: 0.95} and first.value == 0.95
    # Its best, 0.91, is above the median of the second evaluations, but not of the third.
    assert second.state == TrialState.PRUNED
    assert second.intermediate_values == {1: 0.91, 2: 0.7, 3: 0.6}
    assert not list((tmp_path / "search/trials/001").rglob("*.safetensors"))
    assert len(list((tmp_path / "search/trials/001").rglob("events.out.tfevents.*"))) == 2


def test_trial_killed_before_its_pruning_is_recorded_is_pruned(tmp_path, xray_folder, monkeypatch):
    recipe = make_recipe("none", xray_folder)
    eager = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0)
    monkeypatch.setitem(search.PRUNERS, "median", eager)
    values = iter([0.9, 0.5])

    def run(recipe, arguments, callbacks):
        callbacks[0].trial.report(next(values), 1)
        if arguments.output_dir.endswith("001"):
            raise KeyboardInterrupt

    fake_runs(monkeypatch)
    paid = search.run_recipe
    monkeypatch.setattr(search, "run_recipe", lambda *summary: (run(*summary), paid(*summary)))
    with pytest.raises(KeyboardInterrupt):
        start_search(tmp_path, recipe, n_trials=2)
    runs = fake_runs(monkeypatch)
    start_search(tmp_path, recipe, n_trials=2, resume=True)
    assert runs == []
    assert [one.state.name for one in read_study(tmp_path)] == ["COMPLETE", "PRUNED"]


def test_without_the_best_checkpoint_the_last_evaluation_counts(tmp_path, xray_folder, monkeypatch):
    fake_runs(monkeypatch)
    recipe = make_recipe("none", xray_folder)
    start_search(tmp_path, recipe, n_trials=1, load_best_model_at_end=False)
    assert read_study(tmp_path)[0].value == 0.25


def test_lower_is_better_where_the_metric_says_so(tmp_path, xray_folder, monkeypatch):
    fake_runs(monkeypatch)
    start_search(tmp_path, make_recipe("none", xray_folder), metric_for_best_model="loss")
    values = [one.value for one in read_study(tmp_path)]
    assert values[find_best(tmp_path)] == min(values) < max(values)


@pytest.mark.slow
def test_importance_is_reported_from_ten_trials_on(tmp_path, xray_folder, monkeypatch):
    runs = fake_runs(monkeypatch)
    recipe = make_recipe("none", xray_folder)
    start_search(tmp_path, recipe, n_trials=9)
    page = tmp_path / "search/search.md"
    assert page.read_text().count("importance unknown") == 3
    start_search(tmp_path, recipe, n_trials=12, resume=True)
    lines = re.findall(r"- (\w+): .*, importance (\d\.\d\d)", page.read_text())
    shares = {name: float(share) for name, share in lines}
    assert len(runs) == 12 and set(shares) == set(RANGES)
    assert max(shares, key=shares.get) == "learning_rate"
    assert sum(shares.values()) == pytest.approx(1, abs=0.02)


def test_no_further_trial_starts_after_the_timeout(tmp_path, xray_folder, monkeypatch):
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def take_a_minute(arguments):
        clock.now += 60
        return 0.5

    runs = fake_runs(monkeypatch, take_a_minute)
    recipe = make_recipe("none", xray_folder)
    start_search(tmp_path, recipe, n_trials=5, timeout=1.5)
    assert runs == ["000", "001"]
    assert [one.user_attrs["seconds"] for one in read_study(tmp_path)] == [60, 60]


# ---- The test split


@pytest.mark.slow
def test_labels_of_the_test_split_change_nothing(tmp_path, body, monkeypatch):
    from pneumonia_hf.inference import read_ahead

    values, scored = [], []
    opened = read_ahead.read_xray

    def note(source, *others):
        scored.append(source)
        return opened(source, *others)

    monkeypatch.setattr(read_ahead, "read_xray", note)
    for name in ("right", "wrong"):
        data = tmp_path / name / "data"
        for seed, split in enumerate(("train", "val", "test")):
            draw_folder(data / split, patients=8, seed=5000 + 100 * seed)
        if name == "wrong":
            classes = [data / "test" / one for one in ("NORMAL", "PNEUMONIA", "other")]
            for source, target in ((0, 2), (1, 0), (2, 1)):
                classes[source].rename(classes[target])
        recipe = make_recipe(body, data, smallest_validation=1)
        scored.clear()
        start_search(tmp_path / name, recipe, n_trials=1, num_train_epochs=1)
        values.append(list_trials(tmp_path / name))
        names = {str(one) for one in scored}
        assert len(names) == 16 and all("/val/" in one for one in names)
    assert values[0] == values[1]


# ---- What is refused


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
