import json

import numpy as np
import pytest
from datasets import Dataset
from helpers import call_script, draw_folder

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.context import Site
from pneumonia_hf.evaluation.scores import Scores
from pneumonia_hf.evaluation.sections.comparison import compare_scores
from pneumonia_hf.evaluation.sections.sites import measure_site


def make_scores(labels, probabilities, names="f"):
    count = len(labels)
    rows = Dataset.from_dict(
        {"file": [f"{names}{n}" for n in range(count)], "patient": [f"p{n}" for n in range(count)]}
    )
    return Scores(
        rows, np.asarray(labels), np.asarray(probabilities), *np.full((2, count), np.nan),
        np.full(count, "NORMAL"), {}, (),
    )  # fmt: skip


def at(name: str) -> Site:
    return Site(name, None, 0, 0, ())


def draw(noise: float, seed: int, count: int = 500, gap: float = 1.0):
    labels = np.arange(count) % 2
    base = np.random.default_rng(0).normal(0, 1, count)
    own = np.random.default_rng(seed).normal(0, noise, count)
    return make_scores(labels, 1 / (1 + np.exp(-(gap * (2 * labels - 1) + base + own))))


def test_paired_differences_are_found_that_separate_intervals_would_hide():
    first, second = draw(0.1, 1), draw(0.45, 2)
    found = compare_scores(first, second, (0.5, 0.5), "other", 200)
    difference = found.differences["auroc"]
    assert difference.low > 0
    apart = [measure_site(at("x"), one, 0.5, 200).metrics["auroc"] for one in (first, second)]
    assert apart[1].high > apart[0].low


def test_disagreements_are_those_on_two_sides_of_the_thresholds():
    labels = [0, 1, 1, 0]
    first, second = (
        make_scores(labels, [0.2, 0.9, 0.6, 0.7]),
        make_scores(labels, [0.3, 0.1, 0.4, 0.9]),
    )
    found = compare_scores(first, second, (0.5, 0.5), "other", 20)
    assert [one.file for one in found.disagreements] == ["f1", "f2"]
    same = compare_scores(first, first, (0.5, 0.5), "itself", 20)
    assert same.mcnemar.p == 1 and same.disagreements == ()
    assert same.differences["accuracy"].value == 0 and np.isnan(same.differences["accuracy"].low)


def test_scores_of_other_images_cannot_be_compared():
    labels, scores = [0, 1], [0.1, 0.9]
    with pytest.raises(UserError, match="same images"):
        compare_scores(
            make_scores(labels, scores), make_scores(labels, scores, "g"), (0.5, 0.5), "x", 20
        )


def test_the_drop_to_another_site_is_the_difference_of_two_independent_samples():
    home, away = draw(0.5, 1, gap=1.5), draw(0.5, 2, gap=0.4)
    found = measure_site(at("away"), away, 0.5, 300, home)
    own = measure_site(at("home"), home, 0.5, 300)
    assert own.drop is None
    difference = own.metrics["auroc"].value - found.metrics["auroc"].value
    assert found.drop.value == pytest.approx(difference)
    assert found.drop.low > 0
    squares = sum(
        (one.metrics["auroc"].high - one.metrics["auroc"].low) ** 2 for one in (own, found)
    )
    assert found.drop.high - found.drop.low == pytest.approx(squares**0.5, rel=0.2)


def test_two_sites_are_resampled_independently():
    home = draw(0.5, 1)
    drop = measure_site(at("twin"), home, 0.5, 200, home).drop
    assert drop.value == 0 and drop.low < -0.01 and drop.high > 0.01


def test_a_comparison_averages_over_views_for_both_models(tiny_model, tmp_path):
    folder = draw_folder(tmp_path / "data", patients=6)
    done = call_script(
        "evaluate_model.py", "--model", tiny_model, "--data_dir", folder, "--quick", "--tta",
        "--compare", tiny_model, "--output_dir", tmp_path / "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["comparison"]["differences"]["brier_balanced"]["value"] == 0
