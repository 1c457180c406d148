"""Report of a study: search.md, trials.csv, search.png, and best.yaml to train the best again."""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from pneumonia_hf.files import replace_text, unfinished_file
from pneumonia_hf.reporting.page import Page, Section, to_markdown
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run_state import FREE

TABLE_FILE, PAGE_FILE, FIGURE_FILE, BEST_FILE = "trials.csv", "search.md", "search.png", "best.yaml"
OUTPUTS = (TABLE_FILE, PAGE_FILE, FIGURE_FILE, BEST_FILE)
MIN_TRIALS = 10  # complete trials, below which importances are mostly noise
# Arguments that do not change the weights, are secret, or follow from other arguments.
NOT_IN_RECIPE = FREE | {"hub_token", "greater_is_better"}
MEANING = (
    "All values are of the validation split. The best of them is optimistically biased (the "
    "winner's curse): the more trials and the fewer patients, the more of its lead is chance. Each "
    "trial was trained once, with seed {seed}. Train the best one with several seeds before you "
    "trust a small lead, and score it once on the test split, which the search did not use."
)
LAST_VALUE = (
    "The value of a pruned trial is its last one; seconds count from the last start of a trial."
)
IMPORTANCE = (
    "The importance is the share in the variance of the values, by fANOVA: known from "
    f"{MIN_TRIALS} complete trials on, and rough with few."
)


def trial_folder(output: Path, number: int) -> Path:
    """Return the folder of a trial's run, in the output folder of a search."""
    return output / "trials" / f"{number:03}"


def choose_best(study: optuna.Study) -> FrozenTrial | None:
    """Return the complete trial with the best value, the first of equals; None without any."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    return min(complete, key=lambda one: (sign * one.value, one.number), default=None)


def write_report(
    folder: Path, study: optuna.Study, recipe: Recipe, arguments: XrayTrainingArguments
) -> None:
    """Write the report of a search of one trial or more into its folder, over an older one.

    `recipe` and `arguments` have the values of the best trial.
    """
    best, importance = choose_best(study), measure_importance(study)
    frame = study.trials_dataframe(("number", "value", "state", "params", "user_attrs"))
    frame.columns = frame.columns.str.removeprefix("params_").str.removeprefix("user_attrs_")
    if "error" in frame:  # such a trial is pruned in the study, for the sampler's sake
        frame.loc[frame["error"].notna(), ["state", "value"]] = "FAIL", None
    is_ascending = [True, study.direction.name == "MINIMIZE"]
    frame = frame.sort_values(["state", "value"], ascending=is_ascending, kind="stable")
    replace_text(folder / TABLE_FILE, frame.to_csv(index=False))
    metric = arguments.metric_for_best_model
    counts = ", ".join(f"{count} {state}" for state, count in frame.state.value_counts().items())
    summary = f"Trials: {counts}."
    if best is not None:
        result = f"a validation {metric} of {best.value:.4f}"
        recipe_text = _to_recipe(recipe, arguments)
        replace_text(folder / BEST_FILE, f"# Trial {best.number}, with {result}.\n{recipe_text}")
        draw_search(folder / FIGURE_FILE, study, metric)
        model = trial_folder(Path(), best.number)
        summary += f" The best is trial {best.number}, with {result}: its model is in `{model}`, "
        summary += f"and `{BEST_FILE}` is its recipe.\n\n"
        summary += f"![History, importances, and the values over each parameter]({FIGURE_FILE})"
    table = frame.drop(columns="error", errors="ignore")
    table = table.to_string(index=False, float_format="{:.4g}".format, na_rep="-")
    failed = frame[["number", "error"]].dropna().to_numpy() if "error" in frame else []
    errors = "\n".join(f"- Trial {number} failed: {error}" for number, error in failed)
    shares = {name: f"{share:.2f}" for name, share in importance.items()}
    ranges = "\n".join(
        f"- {name}: {distribution}, importance {shares.get(name, 'unknown')}"
        for name, distribution in study.get_trials(deepcopy=False)[0].distributions.items()
    )
    trials = (
        summary,
        MEANING.format(seed=arguments.seed),
        f"```\n{table}\n```",
        LAST_VALUE,
        errors,
    )
    sections = [Section("", trials), Section("Ranges and importances", (ranges, IMPORTANCE))]
    page = to_markdown(Page(f"A search of {len(frame)} trials", sections))
    replace_text(folder / PAGE_FILE, page)


def measure_importance(study: optuna.Study) -> dict[str, float]:
    """Return the share of each hyper-parameter in the variance of the values; {} if unknown.

    By fANOVA (Hutter et al. 2014) over the complete trials; the shares sum up to 1. Optuna's
    default, PED-ANOVA, compares the best tenth of the trials with all: one or two of them here.
    """
    values = [one.value for one in study.get_trials(False, states=(TrialState.COMPLETE,))]
    if len(values) < MIN_TRIALS or len(set(values)) < 3:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def draw_search(path: Path, study: optuna.Study, metric: str) -> None:
    """Write a PNG of Optuna's plots: history, importances, and the value over each parameter."""
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots
    from PIL import Image

    draws = [plots.plot_optimization_history]
    if measure_importance(study):
        evaluator = FanovaImportanceEvaluator(seed=0)
        draws.append(partial(plots.plot_param_importances, evaluator=evaluator))
    names = study.get_trials(deepcopy=False)[0].params
    draws += [partial(plots.plot_slice, params=[name]) for name in names]
    tiles = []
    # Optuna warns that its plots are experimental, and matplotlib of axes with a single value.
    with warnings.catch_warnings(), plt.rc_context({"figure.figsize": (5, 4)}):
        warnings.simplefilter("ignore")
        for draw in draws:
            axes = draw(study, target_name=f"validation {metric}")
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
    figure = Image.new("RGB", (width * min(3, len(tiles)), height * -(-len(tiles) // 3)), "white")
    for at, tile in enumerate(tiles):
        figure.paste(tile, (at % 3 * width, at // 3 * height))
    with unfinished_file(path) as unfinished:
        figure.save(unfinished, format="png")


def _to_recipe(recipe: Recipe, arguments: XrayTrainingArguments) -> str:
    """Return the YAML of a recipe, with the arguments that differ from their defaults."""
    import yaml

    keys = asdict(recipe.data) | asdict(recipe.model) | asdict(recipe.augment)
    defaults = XrayTrainingArguments(output_dir=".").to_dict()
    for name, value in arguments.to_dict().items():
        is_plain = isinstance(value, str | int | float | bool | list | dict)
        if name not in NOT_IN_RECIPE and is_plain and value != defaults.get(name):
            keys[name] = value
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
