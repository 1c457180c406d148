"""Requests that wait at the same time are scored together, and each gets its own answer."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from pneumonia_hf.demo.limits import BUSY
from pneumonia_hf.demo.micro_batch import MOST, MicroBatcher
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.xray import Xray
from pneumonia_hf.inference.network import COMPUTING

FAULTY = 13  # height


class Scorer:
    """Score an image by its width, and note how many came together."""

    def __init__(self):
        self.sizes = []

    def __call__(self, xrays):
        self.sizes.append(len(xrays))
        if any(xray.image.height == FAULTY for xray in xrays):
            raise RuntimeError("out of memory")
        return [xray.image.width for xray in xrays]


def draw(size):
    return Xray(Image.new("L", size), "L")


@pytest.fixture
def batcher():
    return MicroBatcher(Scorer())


def ask(batcher, sizes):
    """Ask for images of these sizes while another computes; return what will be answered."""
    with ThreadPoolExecutor(len(sizes)) as pool:
        with COMPUTING:
            asked = [pool.submit(batcher.predict, draw(size), 30) for size in sizes]
            deadline = time.monotonic() + 30
            while len(batcher.waiting) < len(sizes) and time.monotonic() < deadline:
                time.sleep(0.001)
    return asked


def test_request_alone_is_scored_alone(batcher):
    assert batcher.predict(draw((7, 5)), 30) == 7
    assert batcher.score.sizes == [1]


def test_waiting_requests_are_scored_together(batcher):
    widths = list(range(1, 2 * MOST + 2))  # two full passes, and one
    assert [one.result(30) for one in ask(batcher, [(one, 5) for one in widths])] == widths
    assert sorted(batcher.score.sizes) == [1, MOST, MOST]
    assert not batcher.waiting


def test_large_images_are_not_scored_together(batcher):
    sizes = [(6000 + number, 6000) for number in range(3)]  # two of them have 72 million pixels
    assert [one.result(30) for one in ask(batcher, sizes)] == [6000, 6001, 6002]
    assert batcher.score.sizes == [1, 1, 1]


def test_fault_of_one_image_is_not_that_of_the_others(batcher):
    first, second, third = ask(batcher, [(1, 5), (2, FAULTY), (3, 5)])
    assert (first.result(30), third.result(30)) == (1, 3)
    with pytest.raises(RuntimeError, match="out of memory"):
        second.result(30)
    assert batcher.predict(draw((7, 5)), 30) == 7


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
            batcher.predict(draw((7, 5)), 0.01)
        assert not batcher.waiting
        done.set()
    assert batcher.score.sizes == []


def test_request_that_is_being_scored_when_its_time_is_over_gets_its_answer(batcher):
    with ThreadPoolExecutor(1) as pool, COMPUTING:
        asked = pool.submit(batcher.predict, draw((7, 5)), 1)
        while not batcher.waiting:
            time.sleep(0.001)
        taken = batcher.waiting.popleft()  # as the holder of COMPUTING does
        time.sleep(1.2)
        taken.answer.set_result(7)
        assert asked.result(30) == 7  # although COMPUTING is still held
