"""SIGTERM, the warning of a cluster before it kills: save a checkpoint and end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pneumonia_hf.compat.torch import WORKER_DEAD, find_cause
from pneumonia_hf.errors import Stopped

LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # in the environment that accelerate launch makes
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
    except Exception as error:
        # A cluster may signal the processes that read data as well, which then die.
        if request.received and find_cause(error) == WORKER_DEAD:
            raise Stopped(f"Stopped by SIGTERM; {AGAIN}") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if request.received and sys.exception() is None:
            raise Stopped(f"Stopped by SIGTERM; {AGAIN}")  # it came too late for a checkpoint
        if request.received and not isinstance(sys.exception(), Stopped) and callable(before):
            signal.raise_signal(signal.SIGTERM)  # for the search around this run
