"""Hyper-parameter search: whole runs over a recipe's ranges, chosen between on validation alone.

OUTPUT/checkpoints/recipe.json   what the search is made of; a resumed one must be the same
OUTPUT/study.db                  Optuna's record of the trials
OUTPUT/trials/007/               the run of a trial, as `train` leaves it
OUTPUT/search.md and others      see search_report.py; made anew after each trial
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy import URL
from sqlalchemy.exc import DatabaseError
from transformers import TrainerCallback

from pneumonia_hf.cli import format_error
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import load_xrays
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import read_json
from pneumonia_hf.models.model_folder import CURVES_FILE, MODEL_FILES, RUN_FILE
from pneumonia_hf.search.report import (
    OUTPUTS,
    TRIALS,
    choose_best,
    to_text,
    trial_folder,
    write_search,
)
from pneumonia_hf.search.space import apply_values, read_ranges
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.checkpoints import CHECKPOINTS, read_outcome
from pneumonia_hf.training.interruption import heed_sigterm
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run_record import (
    STUDY_FILE,
    check_output_folder,
    clear,
    create_run_record,
    describe_run,
    fingerprint,
)
from pneumonia_hf.training.runs import run_recipe

STUDY_NAME = "search"
HOPELESS = 3  # so many trials that all failed, and the recipe is wrong, not the luck
PRUNERS = {
    # Five whole runs to compare with, and two evaluations before a run is judged.
    "median": lambda: optuna.pruners.MedianPruner(
        n_startup_trials=5, n_warmup_steps=2, n_min_trials=3
    ),
    "none": optuna.pruners.NopPruner,
}
KEEPS = {"best", "all"}


@dataclass
class SearchConfig:
    """What is searched, and for how long."""

    ranges: str = field(
        metadata={
            "help": "A YAML file with a line for each hyper-parameter, by its name in a recipe: "
            "[low, high], [low, high, log] or {choices: [...]}."
        }
    )
    n_trials: int = field(
        default=20, metadata={"help": "Trials in all, those of earlier sittings included."}
    )
    timeout: float | None = field(
        default=None, metadata={"help": "Minutes after which no further trial is begun."}
    )
    pruner: str = field(
        default="median",
        metadata={"help": "median: stop a trial that is below the median of the others; or none."},
    )
    keep: str = field(
        default="best",
        metadata={"help": "Whose weights and checkpoints stay on the disk: best, or all trials'."},
    )

    def __post_init__(self) -> None:
        if self.n_trials < 1:
            raise UserError(f"n_trials is {self.n_trials}; give 1 or more.")
        if self.timeout is not None and not self.timeout > 0:
            raise UserError(f"timeout is {self.timeout}; give minutes, more than 0.")
        for name, choices in {"pruner": PRUNERS, "keep": KEEPS}.items():
            if getattr(self, name) not in choices:
                raise UserError(
                    f"Unknown {name} {getattr(self, name)!r}; choose from {sorted(choices)}."
                )


def search_recipe(recipe: Recipe, arguments: XrayTrainingArguments, config: SearchConfig) -> Path:
    """Train with one set of hyper-parameters after the other; return the best trial's folder.

    Each trial is a whole run by `run_recipe` in a folder of its own. What is proposed next
    (Bergstra et al. 2011, the tree-structured Parzen estimator) and which trial is the best
    follow from the validation metric that `arguments` names; the test split is not scored.

    With `arguments.resume` a search goes on where it was cut off, within a trial too, and comes
    to the trials that it would have come to without the cut.

    Args:
        recipe, arguments: as for `run_recipe`; what `config.ranges` names is varied.
        config: what is searched, and for how long.

    Raises:
        UserError: ranges that cannot be read or taken, a folder that holds something, a resumed
            search that was begun with something else, no trial that came to its end. What goes
            wrong within one trial, such as divergence, is noted, and the search goes on.
        Stopped: SIGTERM came.
    """
    _check_arguments(arguments)
    ranges = read_ranges(Path(config.ranges), recipe, arguments)
    folder = Path(arguments.output_dir)
    check_output_folder(arguments)
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a model; choose another --output_dir for the search.")
    made_of = describe_run(recipe, _fingerprint_splits(recipe), arguments) | {
        "pruner": config.pruner
    }
    made_of |= {name: f"searched, {distribution_to_json(ranges[name])}" for name in ranges}
    with heed_sigterm(), _only_search(folder):
        if arguments.overwrite:
            _remove_search(folder)
        create_run_record(folder, made_of, arguments.resume)
        with _open_study(folder, arguments, config) as study:
            return _Search(study, ranges, recipe, arguments, config).run()


def _check_arguments(arguments: XrayTrainingArguments) -> None:
    if arguments.world_size > 1:
        raise UserError(
            "A search runs in one process; start it with python, not with accelerate launch "
            "or torchrun."
        )
    if arguments.seeds is not None:
        raise UserError("A search trains each trial once; leave --seeds out and give --seed.")
    if arguments.eval_strategy == "no":
        raise UserError("A search needs evaluations; set --eval_strategy epoch.")


def _fingerprint_splits(recipe: Recipe) -> dict[str, str]:
    """Return the fingerprints of the parts that a search sees: not of the test split."""
    data = load_xrays(recipe.data)
    return {
        name: fingerprint(
            to_hex(hash_images(data[name], recipe.data.cache_dir)), data[name]["label"][:]
        )
        for name in ("train", "validation")
    }


@contextmanager
def _only_search(folder: Path) -> Iterator[None]:
    """Keep a second search out of `folder`; the lock is freed when its process ends, however."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"Another search is at work in {folder}; wait for it, or choose another --output_dir."
        ) from error
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); check --output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remove_search(folder: Path) -> None:
    if not (folder / STUDY_FILE).exists():
        return
    clear(folder)
    shutil.rmtree(folder / TRIALS, ignore_errors=True)
    for name in (*OUTPUTS, STUDY_FILE):  # the study last, which tells that there is a search
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _open_study(
    folder: Path, arguments: XrayTrainingArguments, config: SearchConfig
) -> Iterator[optuna.Study]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell each trial on top of us
    path = folder / STUDY_FILE
    storage = None
    try:
        # As the address of a file, in which no character of its name has a meaning.
        url = URL.create("sqlite", database=path.absolute().as_uri(), query={"uri": "true"})
        storage = optuna.storages.RDBStorage(url.render_as_string())
        yield optuna.create_study(
            storage=storage,
            study_name=STUDY_NAME,
            load_if_exists=True,
            direction="maximize" if arguments.greater_is_better else "minimize",
            sampler=optuna.samplers.RandomSampler(),  # never asked: see `propose`
            pruner=PRUNERS[config.pruner](),
        )
    except (StorageInternalError, DatabaseError) as error:
        reason = getattr(error.__cause__ or error, "orig", error)
        raise UserError(
            f"{path} cannot be used ({reason}); mend that and give the same command with "
            f"--resume, or begin anew with --overwrite."
        ) from error
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def propose(
    trials: Sequence[FrozenTrial], ranges: dict[str, BaseDistribution], direction: str, seed: int
) -> dict[str, Any]:
    """Return the hyper-parameters to try next, by name.

    The sampler is made anew each time, seeded with the number of the trial: what it proposes
    follows from the seed and the earlier trials, no matter where a search was cut off.

    Args:
        trials: all earlier ones, in order. One that failed counts as worse than all others; to
            Optuna itself it would be as if nobody had been there.
        ranges: as `read_ranges` returns them.
        direction: `maximize` or `minimize`.
        seed: of the search.
    """
    words = np.random.SeedSequence([seed, len(trials)]).generate_state(1)
    study = optuna.create_study(
        direction=direction, sampler=optuna.samplers.TPESampler(seed=int(words[0]))
    )
    for trial in trials:
        if trial.state == TrialState.FAIL:
            trial = create_trial(
                state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions
            )
        study.add_trial(trial)
    return study.ask(ranges).params


class _Search:
    """A search in its folder."""

    def __init__(self, study, ranges, recipe, arguments, config) -> None:
        self.study: optuna.Study = study
        self.ranges: dict[str, BaseDistribution] = ranges
        self.recipe: Recipe = recipe
        self.arguments: XrayTrainingArguments = arguments
        self.config: SearchConfig = config
        self.folder = Path(arguments.output_dir)
        self.metric: str = arguments.metric_for_best_model

    def run(self) -> Path:
        """Make the trials that are still to be made; return the folder of the best one."""
        started = time.monotonic()
        while True:
            trials = self.study.get_trials(deepcopy=False)
            killed = [one for one in trials if one.state == TrialState.RUNNING]
            if trials:
                self._tell()
            if killed:  # nobody else is at work here: its process has ended
                self._run_trial(killed[0])
                continue
            self._give_up_if_hopeless(trials)
            if len(trials) >= self.config.n_trials:
                break
            if self.config.timeout and time.monotonic() - started >= 60 * self.config.timeout:
                print(f"{self.config.timeout:g} minutes are over; no further trial is begun.")
                break
            self._run_trial(self._begin_trial(trials))
        best = choose_best(self.study)
        if best is None:
            raise UserError("No trial has come to its end; go on with --resume and more trials.")
        return trial_folder(self.folder, best.number)

    def _begin_trial(self, trials: Sequence[FrozenTrial]) -> FrozenTrial:
        # Written in one piece, so that a kill leaves no trial with half of its parameters.
        direction = self.study.direction.name.lower()
        values = propose(trials, self.ranges, direction, self.arguments.seed)
        self.study.add_trial(
            create_trial(state=TrialState.RUNNING, params=values, distributions=self.ranges)
        )
        return self.study.get_trials(deepcopy=False)[-1]

    def _run_trial(self, begun: FrozenTrial) -> None:
        """Run a trial to its end, from wherever it is, and note how it ended."""
        summary = ", ".join(f"{name} {to_text(value)}" for name, value in begun.params.items())
        count = f"{begun.number + 1} of {self.config.n_trials}"
        print(f"Trial {begun.number} ({count}): {summary}.", flush=True)
        trial, started = Trial(self.study, begun._trial_id), time.monotonic()
        report = _Report(trial)
        value, issue = None, None
        try:
            value = self._train(trial, report)
            state = TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except (UserError, torch.OutOfMemoryError) as error:
            state, issue = TrialState.FAIL, format_error(error)
        _free_memory()
        trial.set_user_attr("seconds", round(time.monotonic() - started))
        trial.set_user_attr("epochs", report.epochs)
        if issue:
            trial.set_user_attr("trouble", issue)
        self.study.tell(trial, value, state)
        self._print_end(begun.number)

    def _print_end(self, number: int) -> None:
        ended, best = self.study.get_trials(deepcopy=False)[number], choose_best(self.study)
        summary = {
            TrialState.COMPLETE: f"{self.metric} {ended.value or 0:.4f}",
            TrialState.PRUNED: "stopped, being below the median of the others",
            TrialState.FAIL: f"failed: {ended.user_attrs.get('trouble')}",
        }[ended.state]
        of_best = f" The best so far: trial {best.number}, {best.value:.4f}." if best else ""
        print(f"Trial {number}: {summary.rstrip('.')}.{of_best}", flush=True)

    def _train(self, trial: Trial, report: _Report) -> float:
        """Return the validation metric of a trial's model, after making it."""
        if _reported(trial) and trial.should_prune():  # it was killed before that was noted
            raise optuna.TrialPruned
        folder = trial_folder(self.folder, trial.number)
        recipe, arguments = apply_values(
            trial.params,
            self.recipe,
            self.arguments,
            output_dir=str(folder),
            resume=True,
            overwrite=False,
            run_name=f"{self.arguments.run_name or STUDY_NAME}-{folder.name}",
        )
        run_recipe(recipe, arguments, [report])
        training = read_json(folder / RUN_FILE, otherwise={})["training"]
        report.epochs = training["epochs_run"]
        value = training["best_validation_metric"]
        if not arguments.load_best_model_at_end:  # what counts is the model that came out
            value = training["history"][-1][f"eval_{self.metric}"]
        if value is None or not math.isfinite(value):
            raise UserError(f"{self.metric} is not defined on the validation split.")
        return value

    def _tell(self) -> None:
        """Write what is known by now, and free the disk of what is not the best."""
        best = choose_best(self.study)
        recipe, arguments = apply_values(best.params if best else {}, self.recipe, self.arguments)
        write_search(self.folder, self.study, recipe, arguments)
        if self.config.keep == "all":
            return
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.is_complete() and (best is None or trial.number != best.number):
                _remove_weights(trial_folder(self.folder, trial.number))

    def _give_up_if_hopeless(self, trials: Sequence[FrozenTrial]) -> None:
        if len(trials) >= HOPELESS and all(one.state == TrialState.FAIL for one in trials):
            raise UserError(
                f"All {len(trials)} trials failed, the last one so: "
                f"{trials[-1].user_attrs['trouble']}"
            )


class _Report(TrainerCallback):
    """Tell Optuna each evaluation of a trial, and stop the trial if it says so."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.epochs = 0.0
        self.pruned = False

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        # Evaluations are counted on over the phases: from what they left behind and the log, so
        # that a resumed run counts the same. Steps would not do: trials may differ in batch size.
        key = f"eval_{args.metric_for_best_model}"
        before = _earlier_phases(Path(args.output_dir))
        logs = [*(outcome.log for outcome in before), state.log_history]
        number = sum(key in entry for log in logs for entry in log)
        self.epochs = sum(outcome.epochs for outcome in before) + state.epoch
        if not math.isfinite(metrics[key]):
            return
        if number not in _reported(self.trial):
            self.trial.report(metrics[key], number)
        if self.trial.should_prune():
            self.pruned = True
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        # Not on evaluation: the trackers close their logs first.
        if self.pruned:
            raise optuna.TrialPruned


def _reported(trial: Trial) -> dict[int, float]:
    """Return what Optuna was told of a trial, by the number of the evaluation."""
    return trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values


def _earlier_phases(folder: Path) -> list[Any]:
    number = int(folder.name.removeprefix("phase-"))
    outcomes = [read_outcome(folder.with_name(f"phase-{one}")) for one in range(1, number)]
    return [outcome for outcome in outcomes if outcome is not None]


def _free_memory() -> None:
    from accelerate.utils.hash_cache import clear_device_cache

    clear_device_cache(garbage_collection=True)  # models and trainers refer to each other


def _remove_weights(folder: Path) -> None:
    """Remove what is large in the folder of a trial; how it went stays, with its logs."""
    for name in set(MODEL_FILES) - {RUN_FILE, CURVES_FILE}:
        (folder / name).unlink(missing_ok=True)
    for checkpoint in folder.glob(f"{CHECKPOINTS}/phase-*/checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
