"""Thousands of damaged X-rays, each read to an image or a refusal: see fuzz_xray.py."""

from fuzz_xray import collect_seeds, damage_dicom, fuzz, summarise
from helpers import REAL_XRAYS


def test_2000_damaged_films_end_in_images_or_refusals_soon_and_small(tmp_path):
    tallies = fuzz(2000, seed=13, xrays=REAL_XRAYS / "kaggle_val", keep=tmp_path)
    breaches = [breach for tally in tallies.values() for breach in tally.breaches]
    assert not breaches, breaches[:5]
    assert sum(tally.images + tally.refusals for tally in tallies.values()) == 2000
    assert sum(tally.images for tally in tallies.values()) > 400
    assert summarise(tallies).startswith("2000 X-rays: ")


def test_damage_is_the_same_for_the_same_seed():
    seeds = collect_seeds(None)
    xrays = [damage_dicom(seeds, 13, 7) for _ in range(2)]
    assert xrays[0] == xrays[1] != damage_dicom(seeds, 14, 7)
