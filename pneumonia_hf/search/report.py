"""Report of a study: search.md, trials.csv, search.png, and best.yaml to train the best again."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from pneumonia_hf.files import replace_text, unfinished_file
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run_record import FREE

TABLE_FILE, PAGE_FILE, FIGURE_FILE, BEST_FILE = "trials.csv", "search.md", "search.png", "best.yaml"
OUTPUTS = (TABLE_FILE, PAGE_FILE, FIGURE_FILE, BEST_FILE)
TRIALS = "trials"
STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
MIN_TRIALS = 10  # complete trials, below which importances are mostly noise
# Arguments that do not change the weights, are secret, or follow from other arguments.
NOT_IN_RECIPE = FREE | {"hub_token", "greater_is_better"}


def trial_folder(output: Path, number: int) -> Path:
    """Return the folder of a trial's run, in the output folder of a search."""
    return output / TRIALS / f"{number:03}"


def rank_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials: the complete ones first, by value, and equal ones by number."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    return sorted(
        study.get_trials(deepcopy=False),
        key=lambda one: (STATES.index(one.state), sign * (one.value or 0), one.number),
    )


def choose_best(study: optuna.Study) -> FrozenTrial | None:
    """Return the complete trial with the best value, the first of equals; None without any."""
    return next((one for one in rank_trials(study) if one.state == TrialState.COMPLETE), None)


def write_report(
    folder: Path, study: optuna.Study, recipe: Recipe, arguments: XrayTrainingArguments
) -> None:
    """Write the report of a search into its folder, over an older one.

    Args:
        folder: of the search.
        study: with one trial or more; the user attribute `error` says why a trial failed.
        recipe, arguments: with the values of the best trial.
    """
    best, importance = choose_best(study), measure_importance(study)
    frame = study.trials_dataframe(("number", "value", "state", "params", "duration", "user_attrs"))
    replace_text(folder / TABLE_FILE, frame.to_csv(index=False))
    replace_text(folder / PAGE_FILE, _to_markdown(study, importance, arguments))
    if best is not None:
        title = f"# Trial {best.number} of a search: "
        title += f"{arguments.metric_for_best_model} {best.value:.4f} on validation.\n"
        replace_text(folder / BEST_FILE, title + _to_recipe(recipe, arguments))
        draw_search(folder / FIGURE_FILE, study, arguments.metric_for_best_model, bool(importance))


def measure_importance(study: optuna.Study) -> dict[str, float]:
    """Return the share of each hyper-parameter in the variance of the values; {} if unknown.

    By fANOVA (Hutter et al. 2014) over the complete trials; the shares sum up to 1. Optuna's
    default, PED-ANOVA, compares the best tenth of the trials with all: one or two of them here.
    """
    values = [one.value for one in study.get_trials(False, states=(TrialState.COMPLETE,))]
    if len(values) < MIN_TRIALS or len(set(values)) < 3:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def draw_search(path: Path, study: optuna.Study, metric: str, with_importance: bool) -> None:
    """Write a figure of Optuna's plots: history, importances, the values over each parameter.

    Args:
        path: the PNG to write.
        study: with one complete trial or more.
        metric: the name of the value.
        with_importance: whether importances are known.
    """
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots
    from PIL import Image

    name, evaluator = f"validation {metric}", FanovaImportanceEvaluator(seed=0)
    draws: list[Callable] = [lambda: plots.plot_optimization_history(study, target_name=name)]
    if with_importance:
        draws.append(lambda: plots.plot_param_importances(study, evaluator, target_name=name))
    for one in study.get_trials(deepcopy=False)[0].params:
        draws.append(lambda one=one: plots.plot_slice(study, [one], target_name=name))
    tiles = []
    # Optuna warns that its plots are experimental, and matplotlib of axes with a single value.
    with warnings.catch_warnings(), plt.rc_context({"figure.figsize": (5, 4)}):
        warnings.simplefilter("ignore")
        for draw in draws:
            axes = draw()
            axes.set_title("", loc="left")
            axes.set_title("")
            axes.tick_params(axis="x", which="both", labelrotation=20, labelsize=7)
            if axes.get_legend():
                axes.legend(loc="lower right", fontsize=8)
            axes.figure.tight_layout()
            axes.figure.savefig(png := io.BytesIO(), dpi=90)
            plt.close(axes.figure)
            tiles.append(Image.open(png))
    # Each plot of Optuna is a figure of its own; they become one, three in a row.
    width, height = tiles[0].size
    rows = -(-len(tiles) // 3)
    figure = Image.new("RGB", (width * min(3, len(tiles)), height * rows), "white")
    for at, tile in enumerate(tiles):
        figure.paste(tile, (at % 3 * width, at // 3 * height))
    with unfinished_file(path) as unfinished:
        figure.save(unfinished, format="png")


def to_text(value: Any) -> str:
    """Return a value of a hyper-parameter as a recipe has it, numbers to four digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _to_markdown(
    study: optuna.Study, importance: dict[str, float], arguments: XrayTrainingArguments
) -> str:
    trials, best, metric = rank_trials(study), choose_best(study), arguments.metric_for_best_model
    counts = [(sum(one.state == state for one in trials), state.name.lower()) for state in STATES]
    names = list(trials[0].params)
    lines = [
        f"# A search of {len(trials)} trials",
        "",
        "Research software, not a medical device.",
        "",
        f"States: {', '.join(f'{count} {state}' for count, state in counts if count)}.",
    ]
    if best is not None:
        lines[-1] += (
            f" The best is trial {best.number}, with a validation {metric} of {best.value:.4f}: "
            f"its model is in `{trial_folder(Path(), best.number)}`, and `{BEST_FILE}` is its "
            f"recipe."
        )
    lines += [
        "",
        f"All values are of the validation split. The best of {counts[0][0]} values is "
        f"optimistically biased (the winner's curse): the more trials and the fewer patients, "
        f"the more of its lead is chance. Each trial was trained once, with seed "
        f"{arguments.seed}. Train the best one with several seeds before you trust a small lead, "
        f"and score it once on the test split, which no trial has seen.",
        "",
        f"| trial | {metric} | state | {' | '.join(names)} | minutes |",
        f"|{'---|' * (len(names) + 4)}",
        *(_to_row(one, names, is_best=one is best) for one in trials),
        "",
        "The value of a pruned trial is its last one. Minutes include interruptions.",
    ]
    failed = [one for one in trials if "error" in one.user_attrs]
    if failed:
        lines += ["", "## Failed trials", ""]
        lines += [f"- Trial {one.number}: {one.user_attrs['error']}" for one in failed]
    lines += ["", "## Importance", ""]
    if importance:
        lines.append("The share in the variance of the values, by fANOVA; rough with few trials.")
        lines += ["", *(f"- {name}: {share:.2f}" for name, share in importance.items())]
    else:
        lines.append(f"Unknown yet: it takes {MIN_TRIALS} complete trials with different values.")
    lines += ["", "## Ranges", ""]
    lines += [f"- {name}: {_describe_range(one)}" for name, one in trials[0].distributions.items()]
    if best is not None:
        lines += ["", f"![Optimization history, and the values by parameter]({FIGURE_FILE})"]
    return "\n".join([*lines, ""])


def _to_row(trial: FrozenTrial, names: list[str], is_best: bool) -> str:
    number = f"**{trial.number}**" if is_best else str(trial.number)
    value = "-" if trial.value is None else f"{trial.value:.4f}"
    minutes = f"{trial.duration.total_seconds() / 60:.1f}" if trial.duration else "-"
    values = [to_text(trial.params[name]) for name in names]
    return f"| {' | '.join([number, value, trial.state.name.lower(), *values, minutes])} |"


def _describe_range(drawn_from: optuna.distributions.BaseDistribution) -> str:
    if isinstance(drawn_from, optuna.distributions.CategoricalDistribution):
        return ", ".join(map(to_text, drawn_from.choices))
    return f"{drawn_from.low:g} to {drawn_from.high:g}{', in log' if drawn_from.log else ''}"


def _to_recipe(recipe: Recipe, arguments: XrayTrainingArguments) -> str:
    """Return the YAML of a recipe: what determines the weights and is not the default."""
    import yaml

    keys = {"backbone": recipe.model.backbone}
    for config in (recipe.data, recipe.model, recipe.augment):
        for one in fields(config):
            value = getattr(config, one.name)
            if value != one.default and value is not None:
                keys[one.name] = value
    defaults = XrayTrainingArguments(output_dir=".", cpu_threads=arguments.cpu_threads).to_dict()
    for name, value in arguments.to_dict().items():
        is_plain = isinstance(value, str | int | float | bool | list)
        if name not in NOT_IN_RECIPE and is_plain and value != defaults.get(name):
            keys[name] = value
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
