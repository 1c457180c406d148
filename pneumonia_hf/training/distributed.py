"""Several processes: broadcast, gather, wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.training.arguments import XrayTrainingArguments


def gather(arguments: XrayTrainingArguments, value: Any) -> list[Any]:
    """Return the values of all processes, in all processes."""
    if arguments.world_size == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def broadcast_from_main(arguments: XrayTrainingArguments, find: Callable[[], Any]) -> Any:
    """Call `find` in the main process; return its result, or raise its UserError, in all."""
    if arguments.world_size == 1:
        return find()
    from accelerate.utils import broadcast_object_list

    found, message = None, None
    if arguments.process_index == 0:
        try:
            found = find()
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
