"""Several processes: broadcast, gather, wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.training.arguments import XrayTrainingArguments


def gather_from_all(arguments: XrayTrainingArguments, value: Any) -> list[Any]:
    """Return the values of all processes, in all processes."""
    if arguments.world_size == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def broadcast_from_main(
    arguments: XrayTrainingArguments, function: Callable[..., Any], *values: Any
) -> Any:
    """Call `function` in the main process; return its result, or raise its UserError, in all."""
    if arguments.world_size == 1:
        return function(*values)
    from accelerate.utils import broadcast_object_list

    found, message = None, None
    if arguments.process_index == 0:
        try:
            found = function(*values)
        except UserError as error:  # the other processes would wait without end
            message = str(error)
    found, message = broadcast_object_list([found, message])
    if message is not None:
        raise UserError(message)
    return found


def barrier(arguments: XrayTrainingArguments) -> None:
    """Wait until all processes have arrived here."""
    if arguments.world_size > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def is_sharded() -> bool:
    """Return whether this process was launched for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
