"""Augmentation never makes the CPU wait for a GPU."""

from __future__ import annotations

from traceback import walk_stack

import numpy as np
import pytest
import torch
from helpers import draw_pixels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pneumonia_hf.training import augment as module
from pneumonia_hf.training.augment import AUGMENTATIONS, AugmentConfig, augment

every_operation = pytest.mark.parametrize("name", sorted(AUGMENTATIONS))


def draw_batch(count: int) -> Tensor:
    return torch.from_numpy(draw_pixels(np.arange(count) % 2, 64))


class OnGpu(Tensor):
    """A tensor that acts as if on a GPU: its device is called meta, its numbers are real."""

    @staticmethod
    def __new__(cls, held: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), dtype=held.dtype, device="meta"
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        raise AssertionError(f"{operation} beside the mode")


class NeverWaiting(TorchDispatchMode):
    """Refuse what would make the CPU wait for such a GPU, and count the kernels."""

    # Ours and kornia's: on CUDA they copy without waiting.
    senders = frozenset({"send", "_to_device_nonblocking"})

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = dict(options or {})
        name = operation.name().removeprefix("aten::").partition(".")[0]
        given = [one for one in tree_leaves((arguments, options)) if isinstance(one, Tensor)]
        there = [one for one in given if isinstance(one, OnGpu)]
        to_gpu = str(options.get("device")) == "meta"
        if there:
            assert name not in ("_local_scalar_dense", "nonzero", "equal"), f"{name} waits"
            masks = name.startswith("index") and any(one.dtype == torch.bool for one in there)
            assert not masks, f"{name} with a mask waits"
            assert to_gpu or options.get("device") is None, f"{name} brings numbers back"
            # Also what torch.tensor([...], device=...) makes, which copies from the CPU and waits.
            strange = [one for one in given if one.dim() and not isinstance(one, OnGpu)]
            assert not strange, f"{name} mixes devices, or takes numbers that were waited for"
        elif name == "_to_copy" and to_gpu:
            callers = {frame.f_code.co_name for frame, _ in walk_stack(None)}
            assert callers & self.senders, "a copy to the GPU waits"
        if options.get("device") is not None:
            options["device"] = torch.device("cpu")
        arguments_held, options_held = tree_map(
            lambda one: one.held if isinstance(one, OnGpu) else one, (arguments, options)
        )
        result = operation(*arguments_held, **options_held)
        if not there and not to_gpu:
            return result
        self.kernels += 1
        if name.endswith("_"):  # in place
            return arguments[0]
        return tree_map(lambda one: OnGpu(one) if isinstance(one, Tensor) else one, result)


@every_operation
def test_the_cpu_never_waits_for_a_gpu(name):
    pixels, others = draw_batch(32), {f"augment_{other}": 0.0 for other in AUGMENTATIONS}
    alone = AugmentConfig(**others | {f"augment_{name}": 1.0})
    torch.manual_seed(0)
    expected = augment(pixels, alone)
    torch.manual_seed(0)
    with NeverWaiting() as mode:
        changed = augment(OnGpu(pixels), alone)
    assert isinstance(changed, OnGpu)
    assert torch.equal(changed.held, expected)
    assert mode.kernels > 0


def test_the_number_of_kernels_does_not_depend_on_the_number_of_images():
    kernels = {}
    for count in (16, 64):
        torch.manual_seed(0)
        with NeverWaiting() as mode:
            module._apply(OnGpu(draw_batch(count)), AugmentConfig().strengths(), always=True)
        kernels[count] = mode.kernels
    assert kernels[16] == kernels[64]
