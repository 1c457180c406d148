"""A study -> search.md, search.json, trials.csv, search.png, and best.yaml to train with again."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pneumonia_hf import __version__
from pneumonia_hf.files import replace_text, write_json
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.curves import BLUE, GREY, ORANGE
from pneumonia_hf.training.run_record import FREE

if TYPE_CHECKING:
    from pneumonia_hf.training.recipe import Recipe

TABLE_FILE, PAGE_FILE, SEARCH_FILE = "trials.csv", "search.md", "search.json"
FIGURE_FILE, BEST_FILE = "search.png", "best.yaml"
OUTPUTS = (TABLE_FILE, PAGE_FILE, SEARCH_FILE, FIGURE_FILE, BEST_FILE)
TRIALS = "trials"
STATES = {  # in the order of the table
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}
ENOUGH = 10  # finished trials, below which an importance would be read out of noise
# What does not decide the weights, is secret, or follows from other arguments.
NOT_OF_RECIPE = FREE | {"hub_token", "greater_is_better"}


def trial_folder(output: Path, number: int) -> Path:
    """Return the folder of a trial's run, in the folder of a search."""
    return output / TRIALS / f"{number:03}"


def choose_best(study: optuna.Study) -> FrozenTrial | None:
    """Return the finished trial of the best value, the first of equals; None if there is none."""
    finished = [one for one in study.get_trials(deepcopy=False) if one.state == TrialState.COMPLETE]
    return min(finished, key=lambda one: (-_sign(study) * one.value, one.number), default=None)


def write_search(
    folder: Path, study: optuna.Study, recipe: Recipe, arguments: XrayTrainingArguments
) -> None:
    """Write what is known of a search into its folder, over what was there.

    Args:
        folder: of the search.
        study: its trials; `seconds`, `epochs` and `issue` are attributes of each.
        recipe, arguments: with the values of the best trial.
    """
    trials = sorted(study.get_trials(deepcopy=False), key=lambda one: _rank(study, one))
    best, metric = choose_best(study), arguments.metric_for_best_model
    importance = weigh_parameters(study)
    summary = {
        "metric": metric,
        "direction": study.direction.name.lower(),
        "best": best.number if best else None,
        "trials": [_describe(one) for one in trials],
        "importance": importance,
        "seed": arguments.seed,
        "version": __version__,
    }
    replace_text(folder / TABLE_FILE, _to_csv(trials))
    replace_text(folder / PAGE_FILE, _to_markdown(trials, best, importance, arguments))
    if best is not None:
        title = f"# Trial {best.number} of a search: {metric} {best.value:.4f} on validation.\n"
        replace_text(folder / BEST_FILE, title + _to_recipe(recipe, arguments))
    draw_search(folder / FIGURE_FILE, study, metric)
    write_json(folder / SEARCH_FILE, summary)


def weigh_parameters(study: optuna.Study) -> dict[str, float] | None:
    """Return the share of each hyper-parameter in how the values vary; None if that is unknown.

    By fANOVA (Hutter et al. 2014) over the finished trials; the shares sum up to 1.
    """
    finished = [one for one in study.get_trials(deepcopy=False) if one.state == TrialState.COMPLETE]
    if len(finished) < ENOUGH or len({one.value for one in finished}) < 3:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def draw_search(path: Path, study: optuna.Study, metric: str) -> None:
    """Write a figure: the value of each trial and the best so far, and over each parameter.

    Args:
        path: the PNG to write.
        study: its finished trials are drawn.
        metric: the name of the value.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trials = study.get_trials(deepcopy=False)
    finished = [one for one in trials if one.state == TrialState.COMPLETE]
    drawn_from = trials[0].distributions if trials else {}
    columns = min(3, max(1, len(drawn_from)))
    rows = -(-len(drawn_from) // columns)
    figure = Figure(figsize=(7.5, 3 + 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.2] + [1] * rows)
    _draw_progress(figure.add_subplot(grid[0, :]), trials, finished, _sign(study), metric)
    for at, (name, one) in enumerate(drawn_from.items()):
        axes = figure.add_subplot(grid[1 + at // columns, at % columns])
        _draw_parameter(axes, name, one, finished)
        if at % columns == 0:
            axes.set_ylabel(metric)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        figure.savefig(unfinished, dpi=110, format="png", metadata={"Software": None})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _draw_progress(
    axes: Any,
    trials: Sequence[FrozenTrial],
    finished: Sequence[FrozenTrial],
    sign: int,
    metric: str,
) -> None:
    numbers, values = [one.number for one in finished], [one.value for one in finished]
    axes.plot(numbers, values, "o", color=BLUE, markersize=4, label="a trial")
    if finished:
        best = sign * np.maximum.accumulate(sign * np.array(values))
        axes.step(numbers, best, where="post", color=ORANGE, label="the best so far")
    for state, mark in ((TrialState.PRUNED, "|"), (TrialState.FAIL, "x")):
        others = [one.number for one in trials if one.state == state]
        if others:  # at the lower edge: they have no value to be compared with
            axes.plot(
                others,
                [0.03] * len(others),
                mark,
                color=GREY,
                transform=axes.get_xaxis_transform(),
                label=STATES[state],
            )
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {metric}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _draw_parameter(
    axes: Any, name: str, drawn_from: BaseDistribution, finished: Sequence[FrozenTrial]
) -> None:
    values = [one.value for one in finished]
    places = [one.params[name] for one in finished]
    if isinstance(drawn_from, CategoricalDistribution):
        names = [to_text(one) for one in drawn_from.choices]
        places = [names.index(to_text(one)) for one in places]
        axes.set_xticks(range(len(names)), names, fontsize=7)
        axes.set_xlim(-0.5, len(names) - 0.5)
        if max(map(len, names)) > 8:
            axes.tick_params(axis="x", rotation=20)
    elif drawn_from.log:
        axes.set_xscale("log")
        ends = np.geomspace(drawn_from.low, drawn_from.high, 3)
        axes.set_xticks(ends, [f"{end:.2g}" for end in ends])
        axes.set_xticks([], minor=True)
    axes.plot(places, values, "o", color=BLUE, markersize=3)
    axes.set_title(name, fontsize=9)
    axes.tick_params(labelsize=7)


def to_text(value: Any) -> str:
    """Return a value of a hyper-parameter as a recipe has it, numbers to four digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sign(study: optuna.Study) -> int:
    return 1 if study.direction == StudyDirection.MAXIMIZE else -1


def _rank(study: optuna.Study, trial: FrozenTrial) -> tuple:
    value = 0 if trial.value is None else -_sign(study) * trial.value
    return list(STATES).index(trial.state), value, trial.number


def _describe(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "value": trial.value,
        "state": STATES[trial.state],
        "parameters": trial.params,
        "evaluations": list(trial.intermediate_values.values()),
        "epochs": trial.user_attrs.get("epochs"),
        "seconds": trial.user_attrs.get("seconds"),
        "trouble": trial.user_attrs.get("trouble"),
    }


def _to_csv(trials: Sequence[FrozenTrial]) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    names = list(trials[0].params) if trials else []
    table.writerow(["number", "value", "state", *names, "epochs", "seconds", "trouble"])
    for one in map(_describe, trials):
        values = [
            "null" if one["parameters"][name] is None else one["parameters"][name] for name in names
        ]
        ended = [one["epochs"], one["seconds"], one["trouble"]]
        table.writerow([one["number"], one["value"], one["state"], *values, *ended])
    return file.getvalue()


def _to_markdown(
    trials: Sequence[FrozenTrial],
    best: FrozenTrial | None,
    importance: dict[str, float] | None,
    arguments: XrayTrainingArguments,
) -> str:
    metric, names = arguments.metric_for_best_model, list(trials[0].params) if trials else []
    number = best.number if best else None
    counts = {
        summary: sum(one.state == state for one in trials) for state, summary in STATES.items()
    }
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines = [f"# A search of {len(trials)} trials", "", "Research software, not a medical device."]
    lines += ["", f"{summary[:1].upper()}{summary[1:]}."]
    if best is not None:
        folder = trial_folder(Path(), best.number)
        lines[-1] += (
            f" The best is trial {best.number}, with a validation {metric} of {best.value:.4f}: "
            f"its model is in `{folder}`, and `{BEST_FILE}` is its recipe."
        )
    lines += [
        "",
        f"The values are of the validation split alone. Being the best of {counts['finished']}, "
        f"the best one flatters: part of its lead is luck (the winner's curse), the more so the "
        f"more trials there are and the fewer patients. Each trial was trained once, with seed "
        f"{arguments.seed}. What the model is worth, only data says that was not chosen on: score "
        f"the test split, once; and train with several seeds before a small lead is believed.",
        "",
        f"| trial | {metric} | state | {' | '.join(names)} | epochs | seconds |",
        f"|---|---|---|{'---|' * len(names)}---|---|",
        *(_to_row(one, names, is_best=one.number == number) for one in trials),
        "",
        "The value of a stopped trial is its last one. The seconds are of its last sitting.",
    ]
    failed = [one for one in trials if "trouble" in one.user_attrs]
    if failed:
        lines += ["", "## What failed", ""]
        lines += [f"- Trial {one.number}: {one.user_attrs['trouble']}" for one in failed]
    lines += ["", "## What matters", ""]
    if importance is None:
        lines.append(f"Unknown yet: that takes {ENOUGH} finished trials whose values differ.")
    else:
        lines += [
            "The share of each in how the values vary, by fANOVA over the finished trials; "
            "rough, with so few of them.",
            "",
            "| | share |",
            "|---|---|",
            *(f"| {name} | {share:.2f} |" for name, share in importance.items()),
        ]
    lines += ["", "## The ranges", ""]
    if trials:
        lines += [
            f"- {name}: {_describe_range(one)}" for name, one in trials[0].distributions.items()
        ]
    return "\n".join(
        [*lines, "", f"![value of each trial, and over each parameter]({FIGURE_FILE})", ""]
    )


def _to_row(trial: FrozenTrial, names: Sequence[str], is_best: bool) -> str:
    summary = _describe(trial)
    value = "-" if trial.value is None else f"{trial.value:.4f}"
    number = f"**{trial.number}**" if is_best else str(trial.number)
    ended = (
        "-" if summary[key] is None else f"{summary[key]:.3g}" for key in ("epochs", "seconds")
    )
    values = [to_text(trial.params[name]) for name in names]
    return f"| {' | '.join([number, value, summary['state'], *values, *ended])} |"


def _describe_range(drawn_from: BaseDistribution) -> str:
    if isinstance(drawn_from, CategoricalDistribution):
        return ", ".join(map(to_text, drawn_from.choices))
    return f"{drawn_from.low:g} to {drawn_from.high:g}{', in log' if drawn_from.log else ''}"


def _to_recipe(recipe: Recipe, arguments: XrayTrainingArguments) -> str:
    """Return the YAML of a recipe: all that decides the weights and is not as usual."""
    import yaml

    keys = {"backbone": recipe.model.backbone}
    for split in (recipe.data, recipe.model, recipe.augment):
        for one in fields(split):
            value = getattr(split, one.name)
            if value != one.default and value is not None:
                keys[one.name] = value
    usual = XrayTrainingArguments(output_dir=".", cpu_threads=arguments.cpu_threads).to_dict()
    for name, value in arguments.to_dict().items():
        is_plain = isinstance(value, str | int | float | bool | list)
        if name not in NOT_OF_RECIPE and is_plain and value != usual.get(name):
            keys[name] = value
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
