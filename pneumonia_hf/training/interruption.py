"""SIGTERM, the warning of a cluster before it kills: save a checkpoint and end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import TrainerCallback

from pneumonia_hf.errors import Stopped

LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # in the environment that accelerate launch makes
STEPS_TO_AGREE = 8  # steps between two agreements of the processes, each of which costs a message
AGAIN = "give the same command with --resume to continue."


@dataclass
class StopRequest:
    """Whether this process was asked to end, and whether it may first save a checkpoint."""

    received: bool = False
    may_wait: bool = False
    # accelerate's launcher of one process: SIGTERM ends it and is not passed on.
    launcher: int | None = None

    @property
    def has_come(self) -> bool:
        """Whether SIGTERM came here, or has ended the launcher."""
        return self.received or (self.launcher is not None and os.getppid() != self.launcher)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let the training inside save a checkpoint before it ends."""
        self.may_wait = True
        try:
            yield
        finally:
            self.may_wait = False


@contextmanager
def catch_sigterm() -> Iterator[StopRequest]:
    """Raise `Stopped` after SIGTERM: at once, or where `may_wait` is set, after a checkpoint.

    transformers' own way (`enable_jit_checkpoint`) waits three seconds first, may save within an
    accumulated step, and does not agree between processes.
    """
    request = StopRequest(launcher=os.getppid() if LAUNCHED in os.environ else None)
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python handles signals in the main thread only
        return

    def receive(*_: object) -> None:
        request.received = True
        if not request.may_wait:
            raise Stopped(f"Stopped by SIGTERM; {AGAIN}")

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
        if request.received and sys.exception() is None:
            raise Stopped(f"Stopped by SIGTERM; {AGAIN}")  # it came too late for a checkpoint
        if request.received and not isinstance(sys.exception(), Stopped) and callable(before):
            signal.raise_signal(signal.SIGTERM)  # for the search around this run


class SaveAndStop(TrainerCallback):
    """Save a checkpoint at the end of the step in which SIGTERM came, and stop."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.agreed = False

    def on_step_end(self, args, state, control, **kwargs):
        self.agreed = self.agreed or self._agree(args, state.global_step)
        # After the last step of an epoch comes an evaluation, which belongs to the checkpoint.
        if self.agreed and state.epoch % 1 and state.global_step < state.max_steps:
            control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.agreed:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self.agreed:
            raise Stopped(
                f"Stopped by SIGTERM, with a checkpoint of step {state.global_step}; {AGAIN}"
            )

    def _agree(self, args, step: int) -> bool:
        """Return whether any process was asked to end: all have to save at the same step."""
        if args.world_size == 1:
            return self.request.has_come
        if step % STEPS_TO_AGREE:
            return False
        given = torch.tensor(float(self.request.has_come), device=args.device)
        torch.distributed.all_reduce(given, op=torch.distributed.ReduceOp.MAX)
        return bool(given.item())
