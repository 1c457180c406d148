"""Whole searches: what they find, how they end, and that an interrupted one ends the same."""

import errno
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
import yaml
from forks import run_fork
from helpers import ROOT, call_script, draw_folder, save_tiny_body
from optuna.trial import TrialState
from safetensors.torch import load_file
from search_runs import (
    FAMILY,
    WHOLE,
    fake_runs,
    find_best,
    list_trials,
    make_recipe,
    read_study,
    start_search,
)

from pneumonia_hf.errors import Stopped, UserError
from pneumonia_hf.search import report as search_report
from pneumonia_hf.search import study as search


@pytest.fixture(scope="module")
def body(tmp_path_factory) -> Path:
    return save_tiny_body(FAMILY, tmp_path_factory.mktemp("body"))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch) -> None:
    """Draw no figure: tests/search/test_report.py does, and so does the search of `resumed`."""
    monkeypatch.setattr(search_report, "draw_search", lambda *given: None)
    monkeypatch.setattr("pneumonia_hf.training.finalize.draw_curves", lambda *given: None)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, body, xray_folder) -> Path:
    """A search that was interrupted within its second trial, after a checkpoint, and resumed."""
    folder, report = tmp_path_factory.mktemp("resumed"), search._Evaluations.on_evaluate

    def interrupt(self, args, state, control, **kwargs):
        report(self, args, state, control, **kwargs)
        if self.trial.number == 1 and state.epoch > 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(search_report, "draw_search", lambda *given: None)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(search._Evaluations, "on_evaluate", interrupt)
            start_search(folder, make_recipe(body, xray_folder), **WHOLE)
        assert [trial.state.name for trial in read_study(folder)] == ["COMPLETE", "RUNNING"]
        start_search(folder, make_recipe(body, xray_folder), **WHOLE, resume=True)
    return folder


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
import search_runs
from pneumonia_hf.search import study

report = study._Evaluations.on_evaluate

def on_evaluate(self, args, state, control, **kwargs):
    report(self, args, state, control, **kwargs)
    if self.trial.number == 1 and state.epoch > 1:
        os.kill(os.getpid(), signal.SIGKILL)

study._Evaluations.on_evaluate = on_evaluate
recipe = search_runs.make_recipe({body!r}, Path({data!r}))
search_runs.start_search(Path({folder!r}), recipe, **search_runs.WHOLE)
"""


@pytest.mark.slow
def test_killed_search_ends_like_an_uninterrupted_one(resumed, tmp_path, body, xray_folder):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    start_search(whole, make_recipe(body, xray_folder), **WHOLE)
    paths = [str(ROOT), str(ROOT / "tests")]
    code = KILLED.format(paths=paths, folder=str(killed), body=str(body), data=str(xray_folder))
    done = run_fork(code, log=tmp_path / "log")
    assert done.returncode == -signal.SIGKILL, done.stdout[-2000:]
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


@pytest.mark.slow
def test_proposals_avoid_where_trials_failed(tmp_path, xray_folder, monkeypatch):
    rates = []

    def fail_above(arguments):
        rates.append(arguments.learning_rate)
        if rates[-1] > 0.15:
            raise UserError("Training has diverged.")
        return 1 - (rates[-1] - 0.1) ** 2

    fake_runs(monkeypatch, fail_above)
    monkeypatch.setattr(search, "write_report", lambda *given: None)
    monkeypatch.setattr(search, "MAX_FAILED", 31)
    ranges = {"learning_rate": [0.0, 1.0], "mixup": [0.0, 1.0]}
    start_search(tmp_path, make_recipe("none", xray_folder), ranges, n_trials=30)
    assert sum(rate > 0.15 for rate in rates[15:]) < 10  # of 15; by chance 13


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
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert "diverged" in bad.user_attrs["error"]
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
    opened = read_ahead.open_xray

    def note(source, *others):
        scored.append(source)
        return opened(source, *others)

    monkeypatch.setattr(read_ahead, "open_xray", note)
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
