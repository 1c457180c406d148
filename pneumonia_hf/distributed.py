"""Several processes: what they share, what the main one alone does, and sharded models."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from operator import itemgetter
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from pneumonia_hf.errors import Stopped, UserError

Result = TypeVar("Result")


def broadcast_from_main(function: Callable[..., Any], *values: Any) -> Any:
    """Call `function` in the main process; return its result, or raise its UserError, in all."""
    if PartialState().num_processes == 1:
        return function(*values)
    found, message = None, None
    if PartialState().is_main_process:
        try:
            found = function(*values)
        except UserError as error:  # the other processes would wait without end
            message = str(error)
    found, message = broadcast_object_list([found, message])
    if message is not None:
        raise UserError(message)
    return found


def share_out(
    function: Callable[[Sequence[int]], Iterable[Result]], count: int, size: int
) -> list[Result]:
    """Return a result for each of `count` items, in order: each process computes its own.

    Args:
        function: the results of the items with the given numbers.
        size: a process takes every n-th group of so many neighbours.
    """
    state = PartialState()
    own = [n for n in range(count) if n // size % state.num_processes == state.process_index]
    found = gather_object(list(zip(own, function(own), strict=True)))
    return [result for _, result in sorted(found, key=itemgetter(0))]


def start_scoring() -> PartialState | None:
    """Join the processes of the launcher, each with its share of the cores; None if there are none.

    After SIGTERM, which the launcher sends when another process has died, it ends by a sentence.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None

    def stop(*_: object) -> NoReturn:
        raise Stopped(
            "Stopped by SIGTERM, as when another process has ended; completed work is kept: start "
            "all processes again."
        )

    signal.signal(signal.SIGTERM, stop)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = max(1, (os.cpu_count() or 1) // local)
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(cores))  # for joblib
    torch.set_num_threads(cores)
    if os.environ.get("RANK", "0") == "0":  # its variables may be of an outer job that never joins
        print(f"Waiting for all of {os.environ['WORLD_SIZE']} processes.", file=sys.stderr)
    # A process waits for the slowest one: as long as it takes.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))
    if not state.is_main_process:
        logging.disable(logging.WARNING)  # tables have those of images
    return state


def is_sharded() -> bool:
    """Return whether this process was launched for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
