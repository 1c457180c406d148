"""Several processes: broadcast, gather, wait."""

from __future__ import annotations

import os
from typing import Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.training.arguments import XrayTrainingArguments


def gather(arguments: XrayTrainingArguments, found: Any) -> list[Any]:
    """Return what each process has found, in all processes."""
    if arguments.world_size == 1:
        return [found]
    from accelerate.utils import gather_object

    return gather_object([found])


def broadcast_from_main(arguments: XrayTrainingArguments, find) -> Any:
    """Return what the first process finds with `find`, in all processes."""
    if arguments.world_size == 1:
        return find()
    from accelerate.utils import broadcast_object_list

    found, error = None, None
    if arguments.process_index == 0:
        try:
            found = find()
        except UserError as summary:  # the others must not wait for it in vain
            error = str(summary)
    found, error = broadcast_object_list([found, error])
    if error is not None:
        raise UserError(error)
    return found


def barrier(arguments: XrayTrainingArguments) -> None:
    """Wait until all processes are here."""
    if arguments.world_size > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def is_sharded() -> bool:
    """Return whether this process was launched for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
