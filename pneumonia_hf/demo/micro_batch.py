"""MicroBatcher: score the images of requests that wait at the same time in one forward pass.

gradio has `batch=True`, with which one visitor's unreadable file is everybody's error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image

from pneumonia_hf.demo.limits import BUSY
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.network import COMPUTING
from pneumonia_hf.inference.predictor import Prediction

MOST = 8  # images of one forward pass


@dataclass(eq=False)  # `remove` must not compare pixels
class _Request:
    image: Image.Image
    answer: Future[Prediction] = field(default_factory=Future)


class MicroBatcher:
    """Whoever gets to compute scores for all that wait; a request alone does not wait."""

    def __init__(self, score: Callable[[list[Image.Image]], list[Prediction]]) -> None:
        """Take what scores several images."""
        self.score = score
        self.waiting: deque[_Request] = deque()

    def predict(self, image: Image.Image, seconds: float) -> Prediction:
        """Return the decision on an image; `seconds` is the longest that it waits.

        Raises:
            UserError: other requests took too long.
        """
        request = _Request(image)
        self.waiting.append(request)
        if not COMPUTING.acquire(timeout=seconds):
            with suppress(ValueError):  # it is being scored
                self.waiting.remove(request)
            raise UserError(BUSY)
        try:
            while not request.answer.done():
                self._score_some()
        finally:
            COMPUTING.release()
        return request.answer.result()

    def _score_some(self) -> None:
        """Answer the first requests that wait. Only the holder of COMPUTING takes them."""
        some = []
        with suppress(IndexError):
            while len(some) < MOST:
                some.append(self.waiting.popleft())
        try:
            found = self.score([one.image for one in some])
        except Exception as error:
            for one in some:
                one.answer.set_exception(error)
        else:
            for one, prediction in zip(some, found, strict=True):
                one.answer.set_result(prediction)
