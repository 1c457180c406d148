import numpy as np
import pytest

from pneumonia_hf.statistics import score_fit
from pneumonia_hf.statistics.hospitals import CLASSES, QUANTILES, THREE_CLASSES
from pneumonia_hf.statistics.score_fit import FEWEST_SCORES, find_score_misfit


def draw_scores(seed, share, count=150, middle=2.0):
    """Log odds of two classes, `middle` above and below zero."""
    generator = np.random.default_rng(seed)
    ill = generator.random(count) < share
    return generator.normal(np.where(ill, middle, -middle), 1)


def describe(seed, count=200, **shift):
    own = {kind: draw_scores(seed + n, n, count, **shift) for n, kind in enumerate(CLASSES)}
    quantiles = {kind: np.quantile(of, QUANTILES).tolist() for kind, of in own.items()}
    return {**dict.fromkeys(CLASSES, count), "log_odds": quantiles}


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_scores_of_the_hospital_fit_at_any_prevalence(share):
    own = {"own": describe(0)}
    misfits = [find_score_misfit(draw_scores(seed, share), own) for seed in range(50, 56)]
    assert sum(one is not None for one in misfits) <= 1


def test_normals_alone_fit_a_hospital_whose_normals_were_partly_of_another_disease():
    draw = np.random.default_rng(0).normal
    quantiles = {
        kind: np.quantile(draw(middle, 1, 200), QUANTILES)
        for kind, middle in zip(THREE_CLASSES, (-3, 0, 3), strict=True)
    }
    both = np.concatenate([quantiles["healthy"], quantiles["others"]])
    quantiles["normals"] = np.quantile(both, QUANTILES)
    own = {"own": {**dict.fromkeys((*THREE_CLASSES, *CLASSES), 200), "log_odds": quantiles}}
    for seed in range(2):
        healthy = np.random.default_rng(60 + seed).normal(-3, 1, 60)
        assert find_score_misfit(healthy, own) is None
        assert find_score_misfit(healthy + 1.5, own) is not None  # between two classes
    of_two = {kind: quantiles[kind] for kind in CLASSES}
    assert find_score_misfit(healthy, {"own": own["own"] | {"log_odds": of_two}}) is not None


def test_of_many_scores_some_are_drawn(monkeypatch):
    sizes = []
    nearest = score_fit._nearest_mixture
    monkeypatch.setattr(score_fit, "SIMULATIONS", 3)
    monkeypatch.setattr(
        score_fit, "_nearest_mixture", lambda a, b: sizes.append(len(a)) or nearest(a, b)
    )
    find_score_misfit(draw_scores(0, 0.5, 5000), {"own": describe(0)})
    assert set(sizes) == {score_fit.MOST_SCORES}


def test_scores_of_another_hospital_do_not_fit_and_it_says_where_they_lie():
    hospitals = {"far": describe(0, middle=9.0), "near": describe(10), "near, AP": {"normals": 20}}
    between = find_score_misfit(draw_scores(3, 0.5, middle=0.3), hospitals)
    assert (between.hospital, between.place) == ("near", "between the classes")
    assert between.p < 0.01 and 0.2 < between.difference < 0.6 and 0.3 < between.share < 0.7
    assert find_score_misfit(draw_scores(3, 0.5) + 3, hospitals).place == "above the pneumonias"
    assert find_score_misfit(draw_scores(3, 0.5) - 3, hospitals).place == "below the normals"
    # One hospital that they fit is enough.
    hospitals["same"] = describe(20, middle=0.3)
    assert find_score_misfit(draw_scores(3, 0.5, middle=0.3), hospitals) is None


def test_nothing_is_said_of_few_scores_or_an_earlier_model():
    strange = draw_scores(3, 0.5) + 9
    assert find_score_misfit(strange[: FEWEST_SCORES - 1], {"own": describe(0)}) is None
    assert find_score_misfit(strange, {}) is None
    assert find_score_misfit(strange[:FEWEST_SCORES], {"own": describe(0)}) is not None
