"""Several processes: what the main one alone does, and whether a model is sharded."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from pneumonia_hf.errors import UserError


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


def start_scoring() -> PartialState:
    """Join the processes of the launcher, each with its share of the cores."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = max(1, (os.cpu_count() or 1) // local)
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(cores))  # for joblib
    torch.set_num_threads(cores)
    # A process waits for the slowest one: as long as it takes.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))


def is_sharded() -> bool:
    """Return whether this process was launched for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
