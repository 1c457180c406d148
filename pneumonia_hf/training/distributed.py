"""Several processes: what the main one alone does, and whether a model is sharded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

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


def is_sharded() -> bool:
    """Return whether this process was launched for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
