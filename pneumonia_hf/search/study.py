"""Hyper-parameter search: whole runs as trials, compared on the validation split alone.

OUTPUT/checkpoints/recipe.json   what the search is made of; a resumed one must be the same
OUTPUT/study.db                  Optuna's record of the trials
OUTPUT/trials/007/               the run of a trial, as `train` leaves it
OUTPUT/search.md and others      see report.py; written again after each trial
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
from accelerate.utils.memory import clear_device_cache
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool
from transformers import TrainerCallback

from pneumonia_hf.cli import check_choices, flag, format_error
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import load_xrays
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import hold_lock
from pneumonia_hf.models.run_manifest import read_manifest
from pneumonia_hf.search.report import OUTPUTS, choose_best, trial_folder, write_report
from pneumonia_hf.search.space import apply_values, read_ranges
from pneumonia_hf.training import run_state
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.checkpoints import CHECKPOINTS, read_outcome
from pneumonia_hf.training.interruption import catch_sigterm
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.train import run_recipe

STUDY_NAME = "search"
MAX_FAILED = 3  # so many trials, all failed: the recipe is wrong, not the values
PRUNERS = {
    # Five whole runs to compare with, and two evaluations before a run is judged.
    "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2, n_min_trials=3),
    "none": optuna.pruners.NopPruner(),
}


@dataclass
class SearchConfig:
    """What is searched, and for how long."""

    ranges: str = flag(
        MISSING,
        "A YAML file with a line for each hyper-parameter, by its name in a recipe: "
        "[low, high], [low, high, log] or {choices: [...]}.",
    )
    n_trials: int = flag(20, "Trials in all, those before --resume included.")
    timeout: float | None = flag(None, "Minutes after which no further trial is started.")
    pruner: Literal["median", "none"] = flag(
        "median", "median: stop a trial below the median of the others; or none."
    )
    keep: Literal["best", "all"] = flag(
        "best", "Whose weights and checkpoints are kept: the best trial's, or all."
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.n_trials < 1:
            raise UserError(f"n_trials is {self.n_trials}; give 1 or more.")
        if self.timeout is not None and not self.timeout > 0:
            raise UserError(f"timeout is {self.timeout}; give minutes, more than 0.")


def search_recipe(recipe: Recipe, arguments: XrayTrainingArguments, config: SearchConfig) -> Path:
    """Train with one set of hyper-parameters after the other; return the best trial's folder.

    Each trial is a whole run by `run_recipe` in its own folder. The next values (Bergstra et al.
    2011, the tree-structured Parzen estimator) and the best trial follow from the validation
    metric that `arguments` names; the test split is not scored. With `arguments.resume` an
    interrupted search continues, within a trial too. An error within one trial, such as
    divergence, does not end the search.

    Raises:
        UserError: ill-formed ranges, a folder in use, a resumed search that was begun with
            something else, no complete trial.
        Stopped: SIGTERM came.
    """
    for is_wrong, message in (
        (arguments.world_size > 1, "runs in one process; start it with python, not accelerate."),
        (arguments.seeds, "trains each trial once; leave --seeds out and give --seed."),
        (arguments.eval_strategy == "no", "needs evaluations; set --eval_strategy epoch."),
        (arguments.push_to_hub, "pushes no trial; push the best model when it has ended."),
    ):
        if is_wrong:
            raise UserError(f"A search {message}")
    ranges = read_ranges(Path(config.ranges), recipe, arguments)
    folder = Path(arguments.output_dir)
    run_state.check_output_folder(arguments)
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a model; choose another --output_dir for the search.")
    data = load_xrays(recipe.data)
    with cache_in(recipe.data.cache_dir):
        fingerprints = {
            name: run_state.fingerprint(to_hex(hash_images(data[name])), data[name]["label"][:])
            for name in ("train", "validation")
        }
    made_of = run_state.describe_run(recipe, fingerprints, arguments) | {"pruner": config.pruner}
    made_of |= {name: f"searched, {distribution_to_json(ranges[name])}" for name in ranges}
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"Another search runs in {folder}; wait for it, or choose another --output_dir."
    with catch_sigterm(), hold_lock(folder / ".lock", busy):
        if arguments.overwrite and (folder / run_state.STUDY_FILE).exists():
            run_state.clear(folder)
            shutil.rmtree(trial_folder(folder, 0).parent, ignore_errors=True)
            for name in (*OUTPUTS, run_state.STUDY_FILE):  # last the study: it marks a search
                (folder / name).unlink(missing_ok=True)
        run_state.create_run_state(folder, made_of, arguments.resume)
        direction = "maximize" if arguments.greater_is_better else "minimize"
        with _open_study(folder, direction=direction, pruner=PRUNERS[config.pruner]) as study:
            return _Search(study, ranges, recipe, arguments, config).run()


@contextmanager
def _open_study(folder: Path, **options: Any) -> Iterator[optuna.Study]:
    """Open the study of a search, and put a trial that was cut off back into its queue.

    No other process runs a trial: the caller holds the lock of the folder, and so a resumed search
    need not wait until a heartbeat is missed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would log each trial a second time
    path, storage = folder / run_state.STUDY_FILE, None
    # A file: address, because in a plain one ? and % have a meaning.
    url = URL.create("sqlite", database=path.absolute().as_uri(), query={"uri": "true"})
    # Without a pool of connections: one would stay open where the storage cannot be made.
    pool = {"poolclass": NullPool}
    try:
        storage = optuna.storages.RDBStorage(url.render_as_string(), engine_kwargs=pool)
        name = {"study_name": STUDY_NAME, "load_if_exists": True}
        study = optuna.create_study(storage=storage, **name, **options)
        study_id = storage.get_study_id_from_name(STUDY_NAME)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            storage.set_trial_state_values(trial_id, TrialState.WAITING)
        yield study
    except (optuna.exceptions.StorageInternalError, DatabaseError) as error:
        reason = getattr(error.__cause__ or error, "orig", error)
        raise UserError(
            f"{path} cannot be used ({reason}); repair it and give the same command with "
            f"--resume, or begin anew with --overwrite."
        ) from error
    finally:
        if storage is not None:
            storage.remove_session()


@dataclass
class _Search:
    """A search in its folder."""

    study: optuna.Study
    ranges: dict[str, BaseDistribution]
    recipe: Recipe
    arguments: XrayTrainingArguments
    config: SearchConfig

    def run(self) -> Path:
        """Run the trials that are missing; return the folder of the best one."""
        started = time.monotonic()
        self._report()
        while not self._is_over(minutes=(time.monotonic() - started) / 60):
            # A new sampler each time: one that is seeded once would, in a resumed search, begin
            # with the values of the first trials again.
            seed = self.arguments.seed + len(self._ended())
            self.study.sampler = optuna.samplers.TPESampler(seed=seed)
            self._run_trial(self.study.ask(self.ranges))
            self._report()
        best = choose_best(self.study)
        if best is None:
            raise UserError("No trial is complete; continue with --resume and more trials.")
        return trial_folder(Path(self.arguments.output_dir), best.number)

    def _ended(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(False) if trial.state.is_finished()]

    def _is_over(self, minutes: float) -> bool:
        ended = self._ended()
        errors = [trial.user_attrs.get("error") for trial in ended]
        if len(ended) >= MAX_FAILED and all(errors):
            raise UserError(f"All {len(ended)} trials failed, the last one so: {errors[-1]}")
        if len(ended) < self.config.n_trials and minutes >= (self.config.timeout or math.inf):
            print(f"{self.config.timeout:g} minutes are over; no further trial is started.")
            return True
        return len(ended) >= self.config.n_trials

    def _run_trial(self, trial: Trial) -> None:
        """Run a trial, or what is left of it, and record how it ended."""
        number, started = trial.number, time.monotonic()
        values = ", ".join(f"{name} {value}" for name, value in trial.params.items())
        print(f"Trial {number} ({number + 1} of {self.config.n_trials}): {values}.", flush=True)
        metric, value, state = self.arguments.metric_for_best_model, None, TrialState.PRUNED
        try:
            value = self._train(trial)
            state, ended = TrialState.COMPLETE, f"{metric} {value:.4f}"
        except optuna.TrialPruned:
            ended = "pruned, below the median of the others"
        except (UserError, torch.OutOfMemoryError) as error:
            # In the study it is pruned: the sampler ignores failed trials, and would propose
            # their neighbours.
            ended = f"failed: {format_error(error)}"
            trial.set_user_attr("error", format_error(error))
        clear_device_cache(garbage_collection=True)  # models and trainers refer to each other
        trial.set_user_attr("seconds", round(time.monotonic() - started))
        self.study.tell(trial, value, state)
        best = choose_best(self.study)
        so_far = f" The best so far: trial {best.number}, {best.value:.4f}." if best else ""
        print(f"Trial {number}: {ended.rstrip('.')}.{so_far}", flush=True)

    def _train(self, trial: Trial) -> float:
        """Return the validation metric of a trial's model, after training it."""
        if trial.should_prune():  # it was killed before that was recorded
            raise optuna.TrialPruned
        folder = trial_folder(Path(self.arguments.output_dir), trial.number)
        name = f"{self.arguments.run_name or STUDY_NAME}-{folder.name}"
        own = {"output_dir": str(folder), "resume": True, "overwrite": False, "run_name": name}
        recipe, arguments = apply_values(trial.params, self.recipe, self.arguments, **own)
        run_recipe(recipe, arguments, [_Evaluations(trial)])
        training = read_manifest(folder).training
        metric, value = arguments.metric_for_best_model, training.best_validation_metric
        if not arguments.load_best_model_at_end:  # the saved model is the last one
            value = training.history[-1][f"eval_{metric}"]
        if value is None or not math.isfinite(value):
            raise UserError(f"{metric} is not defined on the validation split.")
        return value

    def _report(self) -> None:
        """Write the report, and remove the weights of all trials but the best."""
        ended = self._ended()
        if not ended:
            return
        folder, best = Path(self.arguments.output_dir), choose_best(self.study)
        recipe, arguments = apply_values(best.params if best else {}, self.recipe, self.arguments)
        write_report(folder, self.study, recipe, arguments)
        for trial in ended if self.config.keep == "best" else ():
            if best and trial.number == best.number:
                continue
            run = trial_folder(folder, trial.number)
            for name in ("config.json", "model.safetensors"):  # manifest, curves and logs stay
                (run / name).unlink(missing_ok=True)
            for checkpoint in list((run / CHECKPOINTS).rglob("*checkpoint-*")):  # torn ones too
                shutil.rmtree(checkpoint, ignore_errors=True)


class _Evaluations(TrainerCallback):
    """Report each evaluation of a trial to Optuna, and stop the trial if it is to be pruned."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.pruned = False

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        # Counted over all phases, from their logs, so that a resumed run counts the same. Not by
        # steps: trials may differ in batch size.
        phase, key = Path(args.output_dir), f"eval_{args.metric_for_best_model}"
        earlier = range(1, int(phase.name.removeprefix("phase-")))
        outcomes = [read_outcome(phase.with_name(f"phase-{number}")) for number in earlier]
        logs = [*(outcome.log for outcome in outcomes if outcome), state.log_history]
        number = sum(key in entry for log in logs for entry in log)
        trials = self.trial.study.get_trials(deepcopy=False)
        if not math.isfinite(metrics[key]):
            return
        if number not in trials[self.trial.number].intermediate_values:  # as after a kill
            self.trial.report(metrics[key], number)
        if self.trial.should_prune():
            self.pruned = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        # Not on evaluation: the trackers close their logs first.
        if self.pruned:
            raise optuna.TrialPruned
