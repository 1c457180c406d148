from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.evaluation.subgroups import (
    list_groups,
    measure_subgroups,
    score_other_classes,
    to_groups,
)
from pneumonia_hf.inference.predictor import Prediction
from pneumonia_hf.statistics.intervals import draw_patients
from pneumonia_hf.statistics.metrics import auroc, auroc_within


def test_ages_become_bands_and_other_numbers_quarters():
    ages = ["3", "5.9", "6", "058Y", None, "80"]
    assert to_groups("age", ages) == [
        "below 6", "below 6", "6 to below 18", "40 to below 60", "not given", "80 or more",
    ]  # fmt: skip
    quarters = to_groups("dose", [str(number) for number in range(40)])
    assert len(set(quarters)) == 4 and quarters[0] == "below 9.75"
    assert [quarters.count(one) for one in sorted(set(quarters))] == [10] * 4


def test_ages_of_children_in_months_weeks_and_days_become_bands():
    months = [f"{number:03}M" for number in range(1, 24)]
    assert set(to_groups("age", [*months, "010D", "003W", "002Y", "5"])) == {"below 6"}
    assert to_groups("age", ["071M", "072M", " 216m ", "2191D", "2192D", "313W", "314W"]) == [
        *("below 6", "6 to below 18", "18 to below 40", "below 6", "6 to below 18"),
        *("below 6", "6 to below 18"),
    ]


def test_few_numbers_are_names_and_many_texts_are_no_groups():
    assert to_groups("view position", ["1", "2", "1"]) == ["1", "2", "1"]
    assert to_groups("remark", [f"text {number}" for number in range(30)]) is None
    assert to_groups("constant", ["a", "a"]) is None
    assert to_groups("sex", ["F", "", float("nan")]) == ["F", "not given", "not given"]


def draw(count: int = 600, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.5).astype(int)
    scores = 1 / (1 + np.exp(-generator.normal(2 * labels - 1, 1.2)))
    return labels, scores, [str(row) for row in range(count)]


def measure(columns, labels, scores, patients, resamples):
    draws = list(draw_patients(labels, patients, resamples))
    return measure_subgroups(columns, labels, scores, 0.5, patients, draws)


def test_pairs_within_a_group_unmask_a_model_that_knows_the_group_only():
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 0, 1, 1], 100)
    # Nine of ten ill, and one of ten well, were imaged at the bedside.
    bedside = generator.random(400) < np.where(labels == 1, 0.9, 0.1)
    scores = bedside + generator.normal(0, 0.1, 400)
    assert auroc(labels, scores, 0) > 0.85
    assert auroc_within(labels, scores, bedside) == pytest.approx(0.5, abs=0.12)
    _, (view,) = measure(
        {"view": np.where(bedside, "AP", "PA").tolist()},
        labels,
        scores,
        list(map(str, range(400))),
        100,
    )
    assert view.pooled.low > 0.8 and view.within.low < 0.5 < view.within.high


def test_a_group_that_differs_is_flagged_and_one_at_random_is_not():
    labels, scores, patients = draw()
    generator = np.random.default_rng(2)
    half = generator.random(600) < 0.5
    worse = np.where(half & (labels == 1), scores * 0.5, scores)
    columns = {"site": np.where(half, "a", "b"), "chance": generator.permutation(half).astype(str)}
    groups, _ = measure(
        {name: one.tolist() for name, one in columns.items()}, labels, worse, patients, 200
    )
    found = {(one.column, one.value): one for one in groups}
    gap = found["site", "a"].gaps["sensitivity"]
    assert gap.flagged and gap.difference.high < 0
    assert found["site", "b"].gaps == {}  # the same comparison with the other sign
    assert not any(
        gap.flagged
        for (column, _), one in found.items()
        for gap in one.gaps.values()
        if column == "chance"
    )


@pytest.mark.slow
def test_random_groups_are_seldom_flagged_however_many_there_are():
    flagged = 0
    for seed in range(12):
        labels, scores, patients = draw(300, seed)
        generator = np.random.default_rng(seed + 100)
        columns = {f"c{n}": generator.integers(0, 3, 300).astype(str).tolist() for n in range(6)}
        groups, _ = measure(columns, labels, scores, patients, 60)
        flagged += any(gap.flagged for one in groups for gap in one.gaps.values())
    # Unadjusted, nearly every one of these 54 comparisons' families would flag something.
    assert flagged <= 2


@pytest.mark.slow
def test_small_groups_without_an_error_are_not_flagged():
    # The bootstrap draws no error of a group that has none: alone, it would flag nearly all data.
    generator, flagged, perfect = np.random.default_rng(0), 0, 0
    labels = np.tile([0, 1], 60)
    columns = {"x": np.repeat(list("abcdef"), [16] * 5 + [40]).tolist()}
    for _ in range(12):
        right = generator.random(120) < 0.88
        scores = np.where(right == (labels == 1), 0.5, 0) + 0.5 * generator.random(120)
        groups, _ = measure(columns, labels, scores, [str(row) for row in range(120)], 60)
        perfect += any(gap.difference.value > 0.1 and one.metrics[name].value == 1
                       for one in groups for name, gap in one.gaps.items())  # fmt: skip
        flagged += any(gap.flagged for one in groups for gap in one.gaps.values())
    assert perfect > 6 and flagged == 0


def test_many_images_of_few_patients_do_not_make_a_difference():
    # 10 patients a group with 20 equal images each: right are those of 6, and of 9.
    right = np.repeat([1] * 6 + [0] * 4 + [1] * 9 + [0], 20)
    labels = np.concatenate([np.ones(400, int), np.tile([0], 100)])
    scores = np.concatenate([np.where(right, 0.9, 0.1), np.full(100, 0.2)])
    patients = [*np.repeat([f"p{n}" for n in range(20)], 20), *(f"n{n}" for n in range(100))]
    groups = [*np.repeat(["a", "b"], 200), *["a", "b"] * 50]
    (first, _), _ = measure({"x": groups}, labels, scores, patients, 200)
    gap = first.gaps["sensitivity"]
    assert gap.difference.value == pytest.approx(-0.3) and not gap.flagged


def test_what_the_mix_of_groups_contributes_has_an_interval():
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 0, 1, 1], 100)
    bedside = generator.random(400) < np.where(labels == 1, 0.9, 0.1)
    scores = bedside + generator.normal(0, 0.1, 400)
    _, (view,) = measure(
        {"view": np.where(bedside, "AP", "PA").tolist()},
        labels,
        scores,
        list(map(str, range(400))),
        100,
    )
    assert view.difference.value == pytest.approx(view.pooled.value - view.within.value)
    assert view.difference.low > 0.2
    # What is known of the bedside alone: half of the difference of the two shares, above a half.
    shares = [np.mean(bedside[labels == label]) for label in (0, 1)]
    assert view.alone.value == pytest.approx(0.5 + (shares[1] - shares[0]) / 2)
    assert view.alone.low < view.alone.value < view.alone.high


def test_other_findings_are_compared_with_the_pneumonias_of_the_same_view(by_hand):
    others = [
        OtherImage(Path(f"{n}"), f"{n}", "OTHER", {"view": view, "patient_id": f"o{n}"})
        for n, view in enumerate(["AP"] * 6 + ["PA"] * 6)
    ]
    # In AP the pneumonias are above the other findings, in PA below.
    probabilities = [0.1, 0.2, 0.3, 0.4, 0.5, 0.75] + [0.8] * 6
    predictor = SimpleNamespace(
        predict_files=lambda paths, refuse: [
            Prediction("PNEUMONIA" if one >= 0.5 else "NORMAL", one, 0.5, "NORMAL", ())
            for one in probabilities
        ]
    )
    main = replace(
        by_hand.scores,
        rows=Dataset.from_dict({"patient": [f"p{n}" for n in range(16)], "file": ["f"] * 16}),
        labels=np.repeat([1, 0], [12, 4]),
        probabilities=np.array([0.7] * 12 + [0.9] * 4),
    )
    columns = {"view": ["AP"] * 7 + ["PA"] * 5 + ["AP"] * 4}
    found = score_other_classes(predictor, others, columns, main, 50).groups
    assert [one.name for one in found] == ["OTHER", "OTHER, view AP", "OTHER, view PA"]
    assert [one.auroc.value for one in found] == [pytest.approx(5 / 12), pytest.approx(5 / 6), 0]
    assert [(one.count, one.called) for one in found] == [(12, 8), (6, 2), (6, 6)]
    assert found[1].auroc.low < 5 / 6 < found[1].auroc.high
    # Images of one patient are no sample of patients.
    same = [replace(one, cells=one.cells | {"patient_id": "o"}) for one in others]
    found = score_other_classes(predictor, same, columns, main, 50).groups
    assert found[0].auroc.value == pytest.approx(5 / 12) and np.isnan(found[0].auroc.low)
    # Four pneumonias are too few.
    columns["view"][7] = "AP"
    found = score_other_classes(predictor, others, columns, main, 50).groups
    assert np.isnan(found[2].auroc.value)


def test_file_names_say_whether_bacteria_or_a_virus():
    names = ["a:BACTERIA-1008087-0001.jpeg", "PNEUMONIA/VIRUS-6-0001.jpeg", "person1_virus_1.jpeg"]
    data = Dataset.from_dict({"file": [*names, "NORMAL-1-1.jpeg"], "label": [1, 1, 1, 0]})
    assert list_groups(data, []) == {"file name": ["bacteria", "virus", "virus", None]}


def test_groups_of_one_class_and_small_groups():
    labels, scores, patients = draw(200)
    kinds = [
        ("virus" if row % 2 else "bacteria") if ill else None for row, ill in enumerate(labels)
    ]
    kinds = [one if row > 8 else "rare" if one else None for row, one in enumerate(kinds)]
    groups, stratified = measure({"file name": kinds}, labels, scores, patients, 20)
    found = {one.value: one for one in groups}
    assert stratified == ()  # not every image has a group
    virus = found["virus"]
    assert virus.against_all and virus.normals == 0 and "specificity" not in virus.metrics
    rows = np.array([one == "virus" for one in kinds]) | (labels == 0)
    assert virus.metrics["auroc"].value == pytest.approx(auroc(labels[rows], scores[rows], 0))
    # Its sensitivity is compared with that of all other pneumonias.
    assert virus.gaps.keys() == {"sensitivity"}
    others = (labels == 1) & ~np.array([one == "virus" for one in kinds])
    expected = virus.metrics["sensitivity"].value - np.mean(scores[others] >= 0.5)
    assert virus.gaps["sensitivity"].difference.value == pytest.approx(expected)
    assert found["rare"].pneumonias < 5 and found["rare"].metrics == {}
