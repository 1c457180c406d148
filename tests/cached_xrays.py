"""Caches for tests: decoding into a folder, also in a process of its own."""

import os
from multiprocessing.process import BaseProcess

from forks import start_fork

from pneumonia_hf.data.cache import decode
from pneumonia_hf.data.file_hashes import HashCache
from pneumonia_hf.data.pixel_store import cache_in, open_store
from pneumonia_hf.imaging.preprocess import make_processor

PROCESSOR = make_processor(32, (0.5,) * 3, (0.25,) * 3)


def decode_in(place, data, processor=PROCESSOR):
    with cache_in(place):
        return decode(data, processor)


def open_store_in(place, processor=PROCESSOR):
    with cache_in(place):
        return open_store(processor)


def settle(folder) -> None:
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    HashCache.SETTLED = -3600.0  # the time of status change cannot be set


BUILD = """
import sys
from pneumonia_hf.data.cache import decode
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.imaging.preprocess import make_processor
import hashlib, logging
data = load_splits(sys.argv[1])["all"]
with cache_in(sys.argv[2]):
    split = decode(data, make_processor(32, (0.5,) * 3, (0.25,) * 3)).pixels
pixels = split.pixels(range(len(split))).numpy()
print(len(split), split.store.count(), hashlib.sha256(pixels).hexdigest())
"""


def start_build(folder, place, log, before="", **environment) -> BaseProcess:
    return start_fork(before + BUILD, folder, place, log=log, **environment)
