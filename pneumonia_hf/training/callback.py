"""TrainingCallback: what XrayTrainer does at events for which the Trainer has no method."""

from __future__ import annotations

import torch
from transformers import Trainer, TrainerCallback

from pneumonia_hf.errors import Stopped
from pneumonia_hf.training.checkpoints import is_exhausted
from pneumonia_hf.training.interruption import AGAIN, StopRequest
from pneumonia_hf.training.sampler import BalancedSampler

STEPS_TO_AGREE = 8  # steps between two agreements of the processes, each of which costs a message


class TrainingCallback(TrainerCallback):
    """Seeds, averaged weights, the sampler's epoch, when a checkpoint is due, and SIGTERM."""

    def __init__(self, trainer: Trainer, request: StopRequest) -> None:
        """Take an XrayTrainer, which imports this module, and what asks it to end."""
        self.trainer, self.request = trainer, request
        self.is_due = False  # a checkpoint, after the next evaluation
        self.ends = False  # the run, after a checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1 and state.global_step == 0:
            # Else all processes would draw the same augmentation. A resumed run restores each
            # process' own state.
            torch.manual_seed(args.seed + args.process_index)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if args.ema_decay or args.average_from:
            self.trainer.update_average()

    def on_epoch_begin(self, args, state, control, **kwargs):
        if isinstance(self.trainer.sampler, BalancedSampler):
            # accelerate does not call it when several processes resume within an epoch.
            self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        self.ends = self.ends or self._agree(args, state.global_step)
        control.should_save = control.should_save or self.ends
        if state.epoch % 1 == 0 or state.global_step >= state.max_steps:
            # After the evaluation at the end of the epoch, which belongs to the checkpoint.
            self.is_due = self.is_due or control.should_save
            control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs):
        # Every run ends with a checkpoint, whatever the strategy.
        if self.is_due or state.global_step >= state.max_steps:
            control.should_save = True
        self.is_due = False

    def on_save(self, args, state, control, **kwargs):
        if self.ends:
            raise Stopped(
                f"Stopped by SIGTERM, with a checkpoint of step {state.global_step}; {AGAIN}"
            )

    def on_evaluate(self, args, state, control, **kwargs):
        if is_exhausted(state.log_history, args):
            control.should_training_stop = True
            control.should_save = True

    def _agree(self, args, step: int) -> bool:
        """Return whether any process was asked to end: all have to save at the same step."""
        if args.world_size == 1:
            return self.request.has_come
        if step % STEPS_TO_AGREE:
            return False
        given = torch.tensor(float(self.request.has_come), device=args.device)
        torch.distributed.all_reduce(given, op=torch.distributed.ReduceOp.MAX)
        return bool(given.item())
