"""train: model, data and recipe -> training phases -> a saved model; run_recipe: for each seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
    TrainerCallback,
    default_data_collator,
    set_seed,
)

from pneumonia_hf.compat.trackio import keep_dashboard_closed
from pneumonia_hf.data.load import load_xrays
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.distributed import broadcast_from_main
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import read_json, write_json
from pneumonia_hf.memory import keep_freed_memory
from pneumonia_hf.models.backbones import count_trainable, freeze, grow_drop_path
from pneumonia_hf.models.build import build_model
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, MODEL_FILES, RUN_FILE
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.averaging import load_best
from pneumonia_hf.training.checkpoints import (
    OUTCOME_FILE,
    STATE_FILE,
    last_checkpoint,
    phase_folder,
    read_outcome,
)
from pneumonia_hf.training.counterfactuals import compute_validation_metrics
from pneumonia_hf.training.finalize import finalize
from pneumonia_hf.training.interruption import SaveAndStop, catch_sigterm
from pneumonia_hf.training.losses import XrayLoss
from pneumonia_hf.training.phases import Outcome, Phase
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run import Run, prepare_run
from pneumonia_hf.training.run_state import check_output_folder, clear, is_complete, lock_run
from pneumonia_hf.training.sampler import draws_balanced
from pneumonia_hf.training.seeds import SEEDS_FILE, SEEDS_TABLE, summarise_seeds
from pneumonia_hf.training.trainer import XrayTrainer

if TYPE_CHECKING:
    from pneumonia_hf.data.table import XrayData


def run_recipe(
    recipe: Recipe, arguments: XrayTrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Load the data, train, and return the folder of the saved model.

    With `arguments.seeds` it is an ensemble: a saved model for each seed in `seed-N/`, and the
    spread of their metrics. The splits do not depend on the seed.

    Raises:
        UserError: as `train`, `load_xrays` and `build_model`.
    """
    broadcast_from_main(check_output_folder, arguments)
    data = load_xrays(recipe.data)

    def train_once(arguments: XrayTrainingArguments) -> Path:
        set_seed(arguments.seed)  # of the head
        return train(*build_model(recipe.model), data, recipe, arguments, callbacks)

    if arguments.seeds is None:
        return train_once(arguments)
    folder = Path(arguments.output_dir)
    is_main = arguments.process_index == 0
    if arguments.overwrite and is_main:
        # The files of an ensemble of other members, or of a single model; config.json first.
        for name in ("config.json", ENSEMBLE_FILE, SEEDS_FILE, SEEDS_TABLE, *MODEL_FILES):
            (folder / name).unlink(missing_ok=True)
        clear(folder)
    members = []
    for number, seed in enumerate(arguments.seeds, start=1):
        name = f"seed-{seed}"
        if is_main:
            print(f"Seed {seed}, {number} of {len(arguments.seeds)}.", flush=True)
        run_name = f"{arguments.run_name or folder.resolve().name}-{name}"
        own = {"seed": seed, "output_dir": str(folder / name), "run_name": run_name}
        members.append(train_once(arguments.with_changes(**own)))
    if is_main and not _is_summarised(folder, members):
        with cache_in(recipe.data.cache_dir):
            summarise_seeds(
                folder,
                members,
                data["validation"],
                arguments.required_sensitivity,
                resamples=arguments.bootstrap_resamples,
                threshold_resamples=arguments.threshold_resamples,
            )
    PartialState().wait_for_everyone()
    return folder


def _is_summarised(folder: Path, members: Sequence[Path]) -> bool:
    """Return whether `folder` holds an ensemble of these members that is newer than each."""
    ensemble = folder / ENSEMBLE_FILE
    names = (read_json(ensemble, otherwise=None) or {}).get("members")
    return names == [member.name for member in members] and all(
        (member / RUN_FILE).stat().st_mtime_ns < ensemble.stat().st_mtime_ns for member in members
    )


def train(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: XrayData,
    recipe: Recipe,
    arguments: XrayTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Fine-tune `model` and return the folder of the saved model.

    Each training phase starts from the best weights of the one before. The best checkpoint of
    all phases by its validation metric is calibrated, given its threshold and saved in
    `arguments.output_dir`, beside `checkpoints/`. The test split is not scored.

    With `arguments.resume` an interrupted run continues, and ends with the same weights as an
    uninterrupted one; a complete run stays as it is.

    Args:
        model, processor, data: as `build_model` and `load_xrays` return them.
        recipe: written into the run manifest; its `augment` is applied.
        arguments, callbacks: of the Trainer; `output_dir` is the folder to make.

    Raises:
        UserError: a class without readable images, an output folder in use, a loss of NaN, a
            resumed run that was started with other settings.
        Stopped: SIGTERM came, and a checkpoint was saved.
    """
    arguments.set_threads()
    if arguments.use_cpu:
        keep_freed_memory()
    # In the main process only: the others might see what it has just created.
    broadcast_from_main(check_output_folder, arguments)
    with cache_in(recipe.data.cache_dir), catch_sigterm() as stop, ExitStack() as locks:
        # An ExitStack, since only the main process holds the lock.
        broadcast_from_main(locks.enter_context, lock_run(Path(arguments.output_dir)))
        run = prepare_run(processor, data, recipe, arguments, callbacks, stop)
        if broadcast_from_main(is_complete, run.folder, run.run_id):
            if run.is_main:
                print(f"The run in {run.folder} is complete already.")
            return run.folder
        outcomes: list[Outcome] = []
        for number, phase in enumerate(run.phases, start=1):
            outcomes.append(_run_phase(run, model, number, phase))
            if number < len(run.phases):
                model = _load_best_of(run, model, number, outcomes[-1])
        if run.is_main:
            finalize(run, outcomes)
        PartialState().wait_for_everyone()
    return run.folder


def _run_phase(run: Run, model: PreTrainedModel, number: int, phase: Phase) -> Outcome:
    """Train the rest of a phase and return how it ended."""
    folder = phase_folder(run.folder, number)

    def find(read: Callable[[Path], Any]) -> Any:
        return broadcast_from_main(read, folder) if run.arguments.resume else None

    if (outcome := find(read_outcome)) is not None:
        return outcome
    freeze(model, phase.trainable_layer_groups)
    if run.is_main:
        _print_phase(run, model, number, phase)
    if run.recipe.model.channels_last:
        model.to(memory_format=torch.channels_last)
    try:
        trainer = _make_trainer(run, model, number, phase)
        trainer.check()
    except (ImportError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise _explain_refusal(error) from error
    if (checkpoint := find(last_checkpoint)) is not None:
        _check_reachable(checkpoint, run.arguments)
    try:
        with run.stop.waiting():
            trainer.train_from(checkpoint)
    except ValueError as error:
        asked = trainer.args.activation_checkpointing
        if not asked or trainer.model.supports_gradient_checkpointing:
            raise
        raise _explain_refusal(error) from error
    outcome = _outcome_of(trainer, run.arguments)
    if run.is_main:
        write_json(folder / OUTCOME_FILE, asdict(outcome))
    trainer.accelerator.free_memory()
    return outcome


def _print_phase(run: Run, model: PreTrainedModel, number: int, phase: Phase) -> None:
    if len(run.phases) > 1:
        title, epochs = f"Phase {number} of {len(run.phases)}", f"{phase.epochs:g} epochs"
        print(f"{title}: {phase.name}, {epochs} at a rate of {phase.learning_rate:g}.")
    trained, weights = count_trainable(model)
    share = f"{trained / weights:.2%}" if trained < weights else "All"
    print(f"{share} of the network's {weights:,} weights are trained.", flush=True)


def _make_trainer(run: Run, model: PreTrainedModel, number: int, phase: Phase) -> XrayTrainer:
    # Unique, and the same when the run is resumed: trackio appends to any run of this name.
    name = f"{run.arguments.run_name or run.folder.resolve().name}-{run.run_id[:6]}"
    arguments = run.arguments.with_changes(
        output_dir=str(phase_folder(run.folder, number)),
        num_train_epochs=phase.epochs,
        learning_rate=phase.learning_rate,
        seed=(run.arguments.seed + number - 1) % 2**32,
        load_best_model_at_end=False,  # the Trainer would load it non-strictly
        push_to_hub=False,  # the Trainer would push checkpoints
        run_name=f"{name}-phase-{number}" if len(run.phases) > 1 else name,
    )
    if "trackio" in arguments.report_to:
        keep_dashboard_closed(arguments.project, arguments.trackio_space_id)
    images, balanced = run.images, draws_balanced(run.arguments, run.images.sites)
    return XrayTrainer(
        model=model,
        args=arguments,
        processing_class=run.processor,
        train_dataset=images.train,
        eval_dataset=run.validation,
        data_collator=take_batch,
        recipe=run.recipe,
        teacher=run.teacher,
        compute_loss_func=XrayLoss(images.train.labels, arguments, balanced),
        sites=images.sites,
        cells=images.cells,
        compute_metrics=partial(compute_validation_metrics, validation=run.validation),
        callbacks=[*run.callbacks, SaveAndStop(run.stop)],
    )


def _outcome_of(trainer: XrayTrainer, arguments: XrayTrainingArguments) -> Outcome:
    state, log = trainer.state, trainer.state.log_history
    name = f"checkpoint-{state.global_step}"
    if arguments.load_best_model_at_end and state.best_model_checkpoint:
        name = Path(state.best_model_checkpoint).name
    step = int(name.removeprefix("checkpoint-"))
    metric, speed = f"eval_{arguments.metric_for_best_model}", "train_samples_per_second"
    metrics = [entry[metric] for entry in log if entry["step"] == step and metric in entry]
    speeds = [entry[speed] for entry in log if speed in entry]
    return Outcome(
        checkpoint=name,
        metric=metrics[-1] if metrics else None,
        steps=state.global_step,
        epochs=state.epoch,
        images_per_second=speeds[-1] if speeds else None,
        log=log,
    )


def _load_best_of(
    run: Run, model: PreTrainedModel, number: int, outcome: Outcome
) -> PreTrainedModel:
    """Return the model with the best weights of a phase, for the next phase."""
    checkpoint = phase_folder(run.folder, number) / outcome.checkpoint
    if run.arguments.world_size == 1:
        best = load_best(checkpoint)
    else:
        # The other processes may not see the disk of the main one.
        weights = broadcast_from_main(lambda: load_best(checkpoint).state_dict())
        best = AutoModelForImageClassification.from_config(model.config)
        best.load_state_dict(weights, strict=True)
    grow_drop_path(best)
    return best


def _check_reachable(checkpoint: Path, arguments: XrayTrainingArguments) -> None:
    names = [STATE_FILE, "config.json"]
    if arguments.world_size > 1:
        names.append(f"rng_state_{arguments.process_index}.pth")
    is_here = all((checkpoint / name).exists() for name in names)
    if not all(gather_object([is_here])):
        raise UserError(
            f"{checkpoint} is incomplete on some machine; put --output_dir on a disk that all "
            f"machines share, or copy the folder of machine 0 to each of the others."
        )


def take_batch(batch: dict[str, Tensor] | list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a whole batch unchanged, as XrayPixels gives it; collate single images."""
    return batch if isinstance(batch, dict) else default_data_collator(batch)


def _explain_refusal(error: Exception) -> UserError:
    # Trackers and optimizers that are not installed, and arguments that exclude each other.
    return UserError(f"The Trainer refuses these arguments: {' '.join(str(error).split())}")
