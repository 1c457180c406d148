"""MicroBatcher: score the images of requests that wait at the same time in one forward pass.

gradio has `batch=True`, with which one visitor's unreadable file is everybody's error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from pneumonia_hf.demo.limits import BUSY
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.xray import Xray
from pneumonia_hf.inference.network import COMPUTING
from pneumonia_hf.inference.predictor import Prediction

MOST = 8  # images of one forward pass
MOST_PIXELS = 64_000_000  # of all images of one forward pass, if there are several
STEP = 0.02  # seconds between looks whether another request has scored this one


@dataclass(eq=False)  # `remove` must not compare pixels
class _Request:
    xray: Xray
    answer: Future[Prediction] = field(default_factory=Future)


class MicroBatcher:
    """Whoever gets to compute scores for all that wait; a request alone does not wait."""

    def __init__(self, score: Callable[[list[Xray]], list[Prediction]]) -> None:
        """Take what scores several images."""
        self.score = score
        self.waiting: deque[_Request] = deque()

    def predict(self, xray: Xray, seconds: float) -> Prediction:
        """Return the decision on an X-ray; `seconds` is the longest that it waits.

        Raises:
            UserError: other requests took too long.
        """
        request = _Request(xray)
        self.waiting.append(request)
        deadline = time.monotonic() + seconds
        while not request.answer.done():
            if COMPUTING.acquire(timeout=STEP):
                try:
                    if not request.answer.done():
                        self._score_some()
                finally:
                    COMPUTING.release()
            elif time.monotonic() > deadline:
                try:
                    self.waiting.remove(request)
                except ValueError:  # it is being scored
                    break
                raise UserError(BUSY)
        return request.answer.result()

    def _score_some(self) -> None:
        """Answer the first requests that wait. Only the holder of COMPUTING takes them."""
        some = [self.waiting.popleft()]
        pixels = _count_pixels(some[0])
        with suppress(IndexError):  # none is left
            while len(some) < MOST:
                pixels += _count_pixels(self.waiting[0])
                if pixels > MOST_PIXELS:
                    break
                some.append(self.waiting.popleft())
        self._answer(some)

    def _answer(self, some: list[_Request]) -> None:
        try:
            found = self.score([one.xray for one in some])
        except Exception as error:
            if len(some) == 1:
                some[0].answer.set_exception(error)
            else:  # the fault of one is not that of the others
                for one in some:
                    self._answer([one])
        else:
            for one, prediction in zip(some, found, strict=True):
                one.answer.set_result(prediction)


def _count_pixels(request: _Request) -> int:
    return request.xray.image.width * request.xray.image.height
