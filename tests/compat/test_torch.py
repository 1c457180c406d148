"""Torch still counts the changes of a tensor, and its errors still have these words."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from pneumonia_hf.compat.torch import (
    DISK_FULL,
    OUT_OF_MEMORY,
    PEER_GONE,
    WORKER_DEAD,
    find_cause,
    stamp_weights,
)


def make_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4)), nn.Linear(4, 2))


def replace_head(network):
    network[2] = nn.Linear(4, 2)


def swap_data(network):
    network[2].weight.data = torch.ones(2, 4)


CHANGES = {
    "a weight": lambda network: network[0].weight.mul_(2),
    "a buffer": lambda network: network[1][0].running_mean.add_(1),
    "loaded weights": lambda network: network.load_state_dict(make_network().state_dict()),
    "a module": replace_head,
    "the data of a weight": swap_data,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_weights_have_another_stamp(change):
    network = make_network().eval()
    before = stamp_weights(network)
    with torch.no_grad():
        network[0](torch.zeros(1, 3, 8, 8))
        assert stamp_weights(network) == before
        change(network)
    assert stamp_weights(network) != before


def test_weights_made_for_inference_have_a_stamp():
    with torch.inference_mode():
        network = make_network()
    assert len(stamp_weights(network)) == 9


class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a worker that is forked")
def test_error_of_a_killed_worker_is_known_by_its_words():
    with pytest.raises(RuntimeError) as found:
        list(torch.utils.data.DataLoader(Deadly(), num_workers=1))
    assert find_cause(found.value) == WORKER_DEAD


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device of a full disk")
def test_error_of_torch_on_a_full_disk_is_known_by_its_words():
    with pytest.raises((RuntimeError, OSError)) as found:
        torch.save({"weight": torch.zeros(100_000)}, "/dev/full")
    assert find_cause(found.value) == DISK_FULL


def test_other_errors_have_no_cause():
    for error in (RuntimeError("a bug"), ConnectionError("refused"), OSError(2, "No such file")):
        assert find_cause(error) is None
    lost = RuntimeError("[../pair.cc:534] Connection closed by peer [10.0.0.1]:2345")
    assert find_cause(lost) == PEER_GONE
    assert find_cause(torch.OutOfMemoryError("CUDA out of memory")) == OUT_OF_MEMORY
