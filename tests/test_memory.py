import subprocess
import sys

import pytest

from pneumonia_hf import memory

PROGRAM = """
import resource
import torch
from pneumonia_hf.memory import keep_freed_memory

def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(8 * 2**20)  # 32 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

count_faults()
faults = count_faults()
kept = keep_freed_memory()
count_faults()
print(kept, faults, count_faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is of Linux's glibc")
def test_large_tensors_are_not_mapped_anew_each_time():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    kept, before, after = run.stdout.split()
    if kept == "False":
        pytest.skip("this C library is not glibc")
    assert int(before) > 100  # more where pages are small
    assert int(after) < int(before) / 10


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("it was called"))
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # such as musl's
    assert memory.keep_freed_memory() is False
