"""Fixtures of the tests of data."""

import pytest
from cached_xrays import settle
from helpers import draw_folder, draw_xray

from pneumonia_hf.data.file_hashes import HashCache
from pneumonia_hf.data.load import load_splits


@pytest.fixture
def data(tmp_path):
    """Drawn images of several sizes, old enough for the hash cache."""
    folder = draw_folder(tmp_path / "data", patients=40)
    for number in range(5):
        size = (50 + 9 * number, 80)
        draw_xray(number, True, size).save(folder / "NORMAL" / f"IM-9{number}-0.png")
    settle(folder)
    return load_splits(folder)["all"]


@pytest.fixture(autouse=True)
def restore():
    before = HashCache.SETTLED
    yield
    HashCache.SETTLED = before
