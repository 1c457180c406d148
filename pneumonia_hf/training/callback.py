"""TrainingCallback: what XrayTrainer does at events for which the Trainer has no method."""

from __future__ import annotations

import torch
from transformers import Trainer, TrainerCallback

from pneumonia_hf.training.checkpoints import is_exhausted
from pneumonia_hf.training.sampler import BalancedSampler


class TrainingCallback(TrainerCallback):
    """Seeds, averaged weights, the sampler's epoch, and when a checkpoint is due."""

    def __init__(self, trainer: Trainer) -> None:
        """Take an XrayTrainer, which imports this module."""
        self.trainer = trainer
        self.is_due = False  # a checkpoint, after the next evaluation

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
        if state.epoch % 1 == 0 or state.global_step >= state.max_steps:
            # After the evaluation at the end of the epoch, which belongs to the checkpoint.
            self.is_due = self.is_due or control.should_save
            control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs):
        # Every run ends with a checkpoint, whatever the strategy.
        if self.is_due or state.global_step >= state.max_steps:
            control.should_save = True
        self.is_due = False

    def on_evaluate(self, args, state, control, **kwargs):
        if is_exhausted(state.log_history, args):
            control.should_training_stop = True
            control.should_save = True
