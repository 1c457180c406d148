"""train: decoded splits -> training phases -> a saved model folder."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
    TrainerCallback,
    TrainerState,
    default_data_collator,
)

from pneumonia_hf.audit.run import audit_briefly
from pneumonia_hf.compat.trackio import keep_dashboard_closed
from pneumonia_hf.data.cache import decode_splits
from pneumonia_hf.data.file_hashes import to_hex
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.perturbations import ROBUST
from pneumonia_hf.files import write_json
from pneumonia_hf.memory import keep_freed_memory
from pneumonia_hf.models.backbones import count_trainable, freeze, grow_drop_path
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.checkpoints import (
    CHECKPOINTS,
    OUTCOME_FILE,
    STATE_FILE,
    UNFINISHED,
    best_beside,
    choose_outcome,
    is_exhausted,
    last_checkpoint,
    phase_folder,
    read_outcome,
)
from pneumonia_hf.training.counterfactuals import (
    CounterfactualPixels,
    compute_validation_metrics,
)
from pneumonia_hf.training.distillation import UNLABELLED, load_teacher, load_unlabelled
from pneumonia_hf.training.distributed import barrier, broadcast_from_main, gather, is_sharded
from pneumonia_hf.training.finalize import RunFacts, finalize
from pneumonia_hf.training.interruption import Notice, SaveAndStop, heed_sigterm
from pneumonia_hf.training.losses import XrayLoss
from pneumonia_hf.training.phases import (
    Outcome,
    Phase,
    rate_of_parameters,
    read_phases,
)
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run_record import (
    check_output_folder,
    clear,
    create_run_record,
    describe_run,
    fingerprint,
    is_complete,
    lock_run,
)
from pneumonia_hf.training.sampler import draws_balanced
from pneumonia_hf.training.trainer import XrayTrainer, load_best

if TYPE_CHECKING:
    from pneumonia_hf.data.pixel_store import XrayPixels
    from pneumonia_hf.data.table import XrayData

AUDITED: set[tuple] = set()  # fingerprints of the data whose audit this process has printed


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
        model, processor: as `build_model` returns them.
        data: as `load_xrays` returns it.
        recipe: written into the run manifest; its `augment` is applied.
        arguments: of the Trainer; `output_dir` is the folder to make.
        callbacks: further callbacks for the Trainer.

    Raises:
        UserError: a class without readable images, an output folder in use, a loss of NaN, a
            resumed run that was started with other settings.
        Stopped: SIGTERM came, and a checkpoint was saved.
    """
    arguments.set_threads()
    if arguments.use_cpu:
        keep_freed_memory()
    # In the main process only: the others might see what it has just created.
    broadcast_from_main(arguments, lambda: check_output_folder(arguments))
    with cache_in(recipe.data.cache_dir), heed_sigterm() as notice, ExitStack() as locks:
        lock = lock_run(Path(arguments.output_dir))
        broadcast_from_main(arguments, lambda: locks.enter_context(lock) and None)
        return _Run(model, processor, data, recipe, arguments, callbacks, notice).complete()


@dataclass
class _Run:
    """A run in its output folder: its settings and its progress."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    data: XrayData
    recipe: Recipe
    arguments: XrayTrainingArguments
    callbacks: Sequence[TrainerCallback]
    notice: Notice

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        arguments, config = self.arguments, self.recipe.data
        self.folder = Path(arguments.output_dir)
        self.is_main: bool = arguments.process_index == 0
        self.phases: list[Phase] = read_phases(
            arguments.phases,
            arguments.num_train_epochs,
            arguments.learning_rate,
            self.recipe.model.trainable_layer_groups,
        )
        if self.is_main:
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)  # of a killed run
            if arguments.overwrite:
                clear(self.folder)  # the old model stays until the new one is saved
        barrier(arguments)
        (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        self.data, self.splits = decode_splits(self.data, self.processor, strict=config.strict)
        self.hashes = {name: to_hex(split.hashes) for name, split in self.splits.items()}
        # By their names, so that the numbers do not depend on the order of the sources.
        _, self.sites = np.unique(self.data["train"]["source"][:], return_inverse=True)
        self.validation: XrayPixels | CounterfactualPixels = self.splits["validation"]
        if arguments.metric_for_best_model == ROBUST:
            self.validation = CounterfactualPixels(self.validation)
        self.teacher = None
        if arguments.teacher:
            self.teacher = load_teacher(
                arguments.teacher, self.hashes, arguments.teacher_positive_label
            )
        self.fingerprints = {
            name: fingerprint(self.hashes[name], split.labels)
            for name, split in self.splits.items()
        }
        if arguments.unlabelled:
            self._add_unlabelled()
        self._check_same_images()
        audited = tuple(sorted(self.fingerprints.items()))
        if self.is_main and audited not in AUDITED:
            AUDITED.add(audited)
            print(audit_briefly(self.data, self.splits), flush=True)
        made_of = describe_run(self.recipe, self.fingerprints, arguments)
        self.record: dict[str, Any] = broadcast_from_main(
            arguments, lambda: create_run_record(self.folder, made_of, arguments.resume)
        )

    def _add_unlabelled(self) -> None:
        held_out = {*self.hashes["validation"], *self.hashes["test"]}
        images = load_unlabelled(
            self.arguments.unlabelled, self.processor, self.recipe.data, held_out
        )
        self.teacher.unlabelled = images
        self.teacher.unlabelled_share = self.arguments.unlabelled_share
        self.hashes[UNLABELLED] = to_hex(images.hashes)
        self.fingerprints[UNLABELLED] = fingerprint(self.hashes[UNLABELLED], images.labels)
        if self.is_main:
            print(f"{len(images)} unlabelled images are scored by the teacher.", flush=True)

    def complete(self) -> Path:
        """Train the phases that are not complete, and save the model."""
        run_id = self.record["run_id"]
        if broadcast_from_main(self.arguments, lambda: is_complete(self.folder, run_id)):
            if self.is_main:
                print(f"The run in {self.folder} is complete already.")
            return self.folder
        outcomes = []
        for number, phase in enumerate(self.phases, start=1):
            outcomes.append(self._run_phase(number, phase))
            if number < len(self.phases):
                self._load_best_of(number, outcomes[-1])
        if self.is_main:
            self._save_model(outcomes)
        barrier(self.arguments)
        return self.folder

    def _run_phase(self, number: int, phase: Phase) -> Outcome:
        """Train the rest of a phase and return how it ended."""
        folder, resume = phase_folder(self.folder, number), self.arguments.resume

        def find(read: Callable[[Path], Any]) -> Any:
            return broadcast_from_main(self.arguments, lambda: read(folder) if resume else None)

        if (outcome := find(read_outcome)) is not None:
            return outcome
        freeze(self.model, phase.trainable_layer_groups)
        if self.is_main:
            self._print_phase(number, phase)
        if self.recipe.model.channels_last:
            self.model.to(memory_format=torch.channels_last)
        trainer = self._make_trainer(number, phase)
        checkpoint = find(last_checkpoint)
        if checkpoint is not None:
            self._check_reachable(checkpoint)
        self._run_trainer(trainer, checkpoint)
        outcome = self._outcome_of(trainer)
        if self.is_main:
            write_json(folder / OUTCOME_FILE, asdict(outcome))
        trainer.accelerator.free_memory()
        return outcome

    def _print_phase(self, number: int, phase: Phase) -> None:
        if len(self.phases) > 1:
            where, epochs = f"Phase {number} of {len(self.phases)}", f"{phase.epochs:g} epochs"
            print(f"{where}: {phase.name}, {epochs} at a rate of {phase.learning_rate:g}.")
        trained, weights = count_trainable(self.model)
        share = f"{trained / weights:.2%}" if trained < weights else "All"
        print(f"{share} of the network's {weights:,} weights are trained.", flush=True)

    def _make_trainer(self, number: int, phase: Phase) -> XrayTrainer:
        arguments = copy.copy(self.arguments)
        arguments.output_dir = str(phase_folder(self.folder, number))
        arguments.num_train_epochs = phase.epochs
        arguments.learning_rate = phase.learning_rate
        arguments.seed = (self.arguments.seed + number - 1) % 2**32
        arguments.load_best_model_at_end = False  # the Trainer would load it non-strictly
        # Unique, and the same when the run is resumed: trackio appends to any run of this name.
        name = self.arguments.run_name or self.folder.resolve().name
        suffix = f"-phase-{number}" if len(self.phases) > 1 else ""
        arguments.run_name = f"{name}-{self.record['run_id'][:6]}{suffix}"
        if "trackio" in arguments.report_to:
            keep_dashboard_closed(arguments.project, arguments.trackio_space_id)
        try:
            trainer = XrayTrainer(
                model=self.model,
                args=arguments,
                processing_class=self.processor,
                train_dataset=self.splits["train"],
                eval_dataset=self.validation,
                data_collator=take_batch,
                recipe=self.recipe,
                rates=rate_of_parameters(self.model, arguments.layer_decay),
                teacher=self.teacher,
                compute_loss_func=XrayLoss(
                    self.splits["train"].labels,
                    arguments,
                    draws_balanced(arguments.imbalance, self.sites),
                ),
                sites=self.sites,
                compute_metrics=partial(compute_validation_metrics, validation=self.validation),
                callbacks=[*self.callbacks, SaveAndStop(self.notice)],
            )
            if not is_sharded():  # for the errors of optimizer and schedule
                trainer.create_optimizer_and_scheduler(num_training_steps=10)
                trainer.optimizer = trainer.lr_scheduler = None
            if not len(trainer.get_train_dataloader()):
                raise ValueError("dataloader_drop_last leaves no whole batch")
        except (ImportError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise _explain_refusal(error) from error
        return trainer

    def _run_trainer(self, trainer: XrayTrainer, checkpoint: Path | None) -> None:
        """Train from `checkpoint`, if there is one and it is not the last of the phase."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
            is_last = state.global_step >= state.max_steps
            if is_last or is_exhausted(state.log_history, trainer.args):
                state.best_model_checkpoint = best_beside(checkpoint)
                trainer.state = state
                return
            # It is in the log already, and early stopping would count another one.
            trainer.args.eval_on_start = False
        self.notice.may_wait = True
        try:
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except ValueError as error:
            model = trainer.model
            if not trainer.args.activation_checkpointing or model.supports_gradient_checkpointing:
                raise
            raise _explain_refusal(error) from error  # this network does not support it
        finally:
            self.notice.may_wait = False

    def _outcome_of(self, trainer: XrayTrainer) -> Outcome:
        state = trainer.state
        name = f"checkpoint-{state.global_step}"
        if self.arguments.load_best_model_at_end and state.best_model_checkpoint:
            name = Path(state.best_model_checkpoint).name
        step = int(name.removeprefix("checkpoint-"))
        wanted, rate = f"eval_{self.arguments.metric_for_best_model}", "train_samples_per_second"
        metrics = [e[wanted] for e in state.log_history if e["step"] == step and wanted in e]
        speeds = [entry[rate] for entry in state.log_history if rate in entry]
        return Outcome(
            checkpoint=name,
            metric=metrics[-1] if metrics else None,
            steps=state.global_step,
            epochs=state.epoch,
            images_per_second=speeds[-1] if speeds else None,
            log=state.log_history,
        )

    def _load_best_of(self, number: int, outcome: Outcome) -> None:
        """Load the best weights of a phase into the model, for the next phase."""
        checkpoint = phase_folder(self.folder, number) / outcome.checkpoint
        if self.arguments.world_size == 1:
            self.model = load_best(checkpoint)
        else:
            # The other processes may not see the disk of the main one.
            weights = broadcast_from_main(
                self.arguments, lambda: load_best(checkpoint).state_dict()
            )
            self.model = AutoModelForImageClassification.from_config(self.model.config)
            self.model.load_state_dict(weights, strict=True)
        grow_drop_path(self.model)

    def _save_model(self, outcomes: list[Outcome]) -> None:
        best = choose_outcome(outcomes, self.arguments)
        facts = RunFacts(
            run_id=self.record["run_id"],
            recipe=self.recipe,
            arguments=self.arguments,
            data=self.data,
            hashes=self.hashes,
            fingerprints=self.fingerprints,
            phases=self.phases,
            outcomes=outcomes,
            best=best,
            seconds=round(time.monotonic() - self.started),
        )
        checkpoint = phase_folder(self.folder, best + 1) / outcomes[best].checkpoint
        finalize(load_best(checkpoint), self.processor, facts, self.folder)

    def _check_reachable(self, checkpoint: Path) -> None:
        names = [STATE_FILE, "config.json"]
        if self.arguments.world_size > 1:
            names.append(f"rng_state_{self.arguments.process_index}.pth")
        is_here = all((checkpoint / name).exists() for name in names)
        if not all(gather(self.arguments, is_here)):
            raise UserError(
                f"{checkpoint} is incomplete on some machine; put --output_dir on a disk that all "
                f"machines share, or copy the folder of machine 0 to each of the others."
            )

    def _check_same_images(self) -> None:
        found = gather(self.arguments, self.fingerprints)
        if different := [number for number, one in enumerate(found) if one != found[0]]:
            # The processes would wait for each other's batches without end.
            raise UserError(
                f"Process {different[0]} has other images than process 0; "
                f"give all machines the same data."
            )


def take_batch(batch: dict[str, Tensor] | list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a whole batch unchanged, as XrayPixels gives it; collate single images."""
    return batch if isinstance(batch, dict) else default_data_collator(batch)


def _explain_refusal(error: Exception) -> UserError:
    # Trackers and optimizers that are not installed, and arguments that exclude each other.
    return UserError(f"The Trainer refuses these arguments: {' '.join(str(error).split())}")
