"""Searches for tests: with tiny networks, or with runs of no cost in the place of real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import optuna
import yaml
from helpers import TINY_SIZES

from pneumonia_hf.data.load import DataConfig
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.search import report as search_report
from pneumonia_hf.search import study as search
from pneumonia_hf.search.study import SearchConfig, search_recipe
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


def fake_runs(
    monkeypatch, summary=lambda arguments: 1 - arguments.learning_rate, draw: bool = False
) -> list[str]:
    """Put runs of no cost in the place of real ones; return the list of the folders of them.

    Args:
        monkeypatch: pytest's.
        summary: gives the metric of a run, or raises what the run is to raise.
        draw: whether the figure is drawn, which takes long.
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
    if not draw:
        monkeypatch.setattr(search_report, "draw_search", lambda *given: None)
    # Looking for memory to free takes long.
    monkeypatch.setattr(search, "clear_device_cache", lambda **given: None)
    return runs
