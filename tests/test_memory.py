import os
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


@pytest.mark.slow
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


THREADS = """
import ctypes
import sys
from threading import Barrier, Thread

import numpy as np
from pneumonia_hf.memory import keep_freed_memory

kept = keep_freed_memory(*map(int, sys.argv[1:]))
library, barrier = ctypes.CDLL(None), Barrier(8)

def work():
    barrier.wait()  # all threads at once
    np.ones(2**16)
    barrier.wait()

threads = [Thread(target=work) for _ in range(8)]
for one in threads:
    one.start()
for one in threads:
    one.join()
print(kept, flush=True)
library.malloc_info(0, ctypes.c_void_p.in_dll(library, "stdout"))
library.fflush(None)
"""


LIMITS = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is of Linux's glibc")
def test_threads_share_the_memory_if_asked():
    counts = []
    for arguments in ((), ("2",)):
        run = subprocess.run(
            [sys.executable, "-c", THREADS, *arguments], capture_output=True, text=True, check=True,
            env={key: value for key, value in os.environ.items() if key not in LIMITS},
        )  # fmt: skip
        if run.stdout.startswith("False"):
            pytest.skip("this C library is not glibc")
        counts.append(run.stdout.count("<heap nr="))
    assert counts[0] > 2 and counts[1] <= 2, counts


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("it was called"))
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # such as musl's
    assert memory.keep_freed_memory() is False
