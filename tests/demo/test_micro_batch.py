"""Requests that wait at the same time are scored together, and each gets its own answer."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from pneumonia_hf.demo.limits import BUSY
from pneumonia_hf.demo.micro_batch import MOST, MicroBatcher
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.network import COMPUTING


class Scorer:
    """Score an image by its width, and note how many came together."""

    def __init__(self):
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        if any(image.height == 13 for image in images):
            raise RuntimeError("out of memory")
        return [image.width for image in images]


@pytest.fixture
def batcher():
    return MicroBatcher(Scorer())


def ask(batcher, widths, height=5):
    """Ask for all widths while another computes; return what is or will be answered."""
    with ThreadPoolExecutor(len(widths)) as pool:
        with COMPUTING:
            asked = [
                pool.submit(batcher.predict, Image.new("L", (width, height)), 30)
                for width in widths
            ]
            deadline = time.monotonic() + 30
            while len(batcher.waiting) < len(widths) and time.monotonic() < deadline:
                time.sleep(0.001)
    return asked


def test_request_alone_is_scored_alone(batcher):
    assert batcher.predict(Image.new("L", (7, 5)), 30) == 7
    assert batcher.score.sizes == [1]


def test_waiting_requests_are_scored_together(batcher):
    widths = list(range(1, 2 * MOST + 2))  # two full passes, and one
    assert [one.result(30) for one in ask(batcher, widths)] == widths
    assert sorted(batcher.score.sizes) == [1, MOST, MOST]
    assert not batcher.waiting


def test_error_reaches_all_who_were_scored_with_it_and_nobody_waits_forever(batcher):
    for one in ask(batcher, [1, 2, 3], height=13):
        with pytest.raises(RuntimeError, match="out of memory"):
            one.result(30)
    assert batcher.predict(Image.new("L", (7, 5)), 30) == 7


def test_request_that_waits_too_long_is_refused_and_leaves_the_line(batcher):
    held, done = threading.Event(), threading.Event()

    def compute():
        with COMPUTING:
            held.set()
            done.wait(30)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(compute)
        assert held.wait(30)
        with pytest.raises(UserError, match=BUSY):
            batcher.predict(Image.new("L", (7, 5)), 0.01)
        assert not batcher.waiting
        done.set()
    assert batcher.score.sizes == []
