"""Damaged X-rays are read to an image or refused with an XrayError: see fuzz_xray.py."""

import pytest
from damages import damage_xray
from fuzz_xray import fuzz, summarise
from helpers import REAL_XRAYS, draw_xray
from xray_kinds import encode_images


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_xrays_are_read_or_refused_within_time_and_memory(tmp_path, count):
    xrays, full_size = REAL_XRAYS / "kaggle_val", count > 100
    tallies = fuzz(count, 13, xrays=xrays, keep=tmp_path, full_size=full_size)
    breaches = [breach for tally in tallies.values() for breach in tally.breaches]
    assert not breaches, breaches[:5]
    assert sum(tally.images + tally.refusals for tally in tallies.values()) == count
    assert sum(tally.images for tally in tallies.values()) > count / 5
    assert summarise(tallies).startswith(f"{count} X-rays: ")


def test_damage_is_the_same_for_the_same_seed():
    seeds = encode_images(draw_xray(0, ill=True)), {}
    xrays = [damage_xray(seeds, 13, 7) for _ in range(2)]
    assert xrays[0] == xrays[1] != damage_xray(seeds, 14, 7)
