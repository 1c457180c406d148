"""What torch, and safetensors beside it, tell in no public way.

The version counter of a tensor has no public name, nor have the dicts of a module. Errors of a full
disk, a dead worker and a lost process have no class of their own: RuntimeError and SafetensorError,
which stand for much else, say it in words. tests/compat/test_torch.py fails when these change.
"""

from __future__ import annotations

import errno
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

DISK_IS_FULL = (
    *("No space left on device", "os error 28"),  # safetensors
    *("PytorchStreamWriter failed", "unexpected pos"),  # torch.save
)
WORKER_IS_DEAD = "DataLoader worker"
# Of gloo and NCCL, in the processes that are still running.
PEER_IS_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL communicator was aborted",
)
# What a user should know of each.
DISK_FULL = "The disk is full; free some space and start again: completed work is kept."
OUT_OF_MEMORY = "The accelerator's memory is too small; halve --per_device_train_batch_size."
WORKER_DEAD = (
    "A process that reads the data was killed, perhaps for lack of memory; lower "
    "--dataloader_num_workers, and continue with --resume from the last checkpoint."
)
PEER_GONE = (
    "Another process has ended; read its message, and start all processes again, a training "
    "run with --resume: completed work is kept."
)


def stamp_weights(model: nn.Module) -> tuple:
    """Return what differs once a weight or buffer of a model is changed, moved or replaced.

    It costs no look at the numbers: torch counts the changes of each tensor.
    """
    found, modules = [], [model]
    while modules:  # five times as fast as parameters() and buffers(), 0.3 ms for 300 tensors
        module = modules.pop()
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                version = 0 if tensor.is_inference() else tensor._version
                found.append((id(tensor), tensor.data_ptr(), version))
        modules.extend(module._modules.values())
    return tuple(found)


def find_cause(error: BaseException) -> str | None:
    """Return the sentence above that says what is behind an error, however it is wrapped."""
    wrapped: BaseException | None = error
    while wrapped is not None:
        is_os_error = isinstance(wrapped, OSError) and wrapped.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_os_error or any(words in str(wrapped) for words in DISK_IS_FULL):
            return DISK_FULL
        wrapped = wrapped.__cause__ or wrapped.__context__
    if type(error).__name__ == "OutOfMemoryError":  # without the import of torch
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError):
        if WORKER_IS_DEAD in str(error):
            return WORKER_DEAD
        if any(words in str(error) for words in PEER_IS_GONE):
            return PEER_GONE
    if isinstance(error, ConnectionError | EOFError):
        # A worker died while it sent a batch: the error is that of the pipe.
        files = [Path(frame.f_code.co_filename) for frame, _ in walk_tb(error.__traceback__)]
        if any(file.parent.name == "multiprocessing" for file in files):
            return WORKER_DEAD
    return None
