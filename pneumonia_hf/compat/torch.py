"""What torch, and safetensors beside it, tell in no public way.

The version counter of a tensor has no public name, nor have the dicts of a module. Errors of a full
disk, a dead worker and a lost process have no class of their own: RuntimeError and SafetensorError,
which stand for much else, say it in words. tests/compat/test_torch.py fails when these change.
"""

from __future__ import annotations

import errno
from enum import Enum, auto
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


class Cause(Enum):
    """What is behind an error."""

    DISK_FULL = auto()
    OUT_OF_MEMORY = auto()  # of the accelerator
    WORKER_DEAD = auto()  # a process that reads data
    PEER_GONE = auto()  # another process of the run


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


def find_cause(error: BaseException) -> Cause | None:
    """Return what is behind an error, however the libraries wrap it, if it is one of these."""
    wrapped: BaseException | None = error
    while wrapped is not None:
        is_os_error = isinstance(wrapped, OSError) and wrapped.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_os_error or any(words in str(wrapped) for words in DISK_IS_FULL):
            return Cause.DISK_FULL
        wrapped = wrapped.__cause__ or wrapped.__context__
    if type(error).__name__ == "OutOfMemoryError":  # without the import of torch
        return Cause.OUT_OF_MEMORY
    if isinstance(error, RuntimeError):
        if WORKER_IS_DEAD in str(error):
            return Cause.WORKER_DEAD
        if any(words in str(error) for words in PEER_IS_GONE):
            return Cause.PEER_GONE
    if isinstance(error, ConnectionError | EOFError):
        # A worker died while it sent a batch: the error is that of the pipe.
        files = [Path(frame.f_code.co_filename) for frame, _ in walk_tb(error.__traceback__)]
        if any(file.parent.name == "multiprocessing" for file in files):
            return Cause.WORKER_DEAD
    return None
