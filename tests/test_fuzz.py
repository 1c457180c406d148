"""Thousands of damaged films, each read to a picture or a refusal: see fuzz_xray.py."""

from conftest import REAL_XRAYS
from fuzz_xray import collect_seeds, damage_film, fuzz, summarise


def test_2000_damaged_films_end_in_pictures_or_refusals_soon_and_small(tmp_path):
    tallies = fuzz(2000, seed=13, xrays=REAL_XRAYS / "kaggle_val", keep=tmp_path)
    breaches = [breach for tally in tallies.values() for breach in tally.breaches]
    assert not breaches, breaches[:5]
    assert sum(tally.pictures + tally.refusals for tally in tallies.values()) == 2000
    assert sum(tally.pictures for tally in tallies.values()) > 400
    assert summarise(tallies).startswith("2000 films: ")


def test_damage_is_the_same_for_the_same_seed():
    seeds = collect_seeds(None)
    films = [damage_film(seeds, 13, 7) for _ in range(2)]
    assert films[0] == films[1] != damage_film(seeds, 14, 7)
