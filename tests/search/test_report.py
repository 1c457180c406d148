"""The report of a search: table, page, figure, and the share of each hyper-parameter."""

import csv
import re

import pytest
from PIL import Image
from search_runs import RANGES, fake_runs, find_best, make_recipe, read_study, start_search

from pneumonia_hf.errors import UserError


def test_report_describes_each_trial_and_warns_of_the_bias(tmp_path, xray_folder, monkeypatch):
    fake_runs(monkeypatch, draw=True)
    start_search(tmp_path, make_recipe("none", xray_folder), n_trials=2)
    with (tmp_path / "search/trials.csv").open() as file:
        rows = {int(row["number"]): row for row in csv.DictReader(file)}
    best = find_best(tmp_path)
    assert next(iter(rows)) == best
    for trial in read_study(tmp_path):
        row = rows[trial.number]
        assert (row["state"], float(row["value"])) == ("COMPLETE", trial.value)
        assert float(row["learning_rate"]) == trial.params["learning_rate"]
        assert row["imbalance"] == trial.params["imbalance"] and int(row["seconds"]) >= 0
    page = (tmp_path / "search/search.md").read_text()
    assert "winner's curse" in page and "validation" in page and "2 COMPLETE" in page
    assert f"{float(rows[best]['learning_rate']):.4g}" in page
    assert "- learning_rate: FloatDistribution(high=0.01, log=True, low=0.0001" in page
    with Image.open(tmp_path / "search/search.png") as figure:
        assert figure.format == "PNG" and figure.width > 1000
        assert min(figure.convert("L").getextrema()) < 100
    assert not list((tmp_path / "search").glob(".*unfinished"))


def test_failed_trial_is_listed_as_failed_with_its_reason(tmp_path, xray_folder, monkeypatch):
    def fail_first(arguments):
        if arguments.output_dir.endswith("000"):
            raise UserError("The loss is not a number.")
        return 0.8

    fake_runs(monkeypatch, fail_first)
    start_search(tmp_path, make_recipe("none", xray_folder), n_trials=2)
    with (tmp_path / "search/trials.csv").open() as file:
        states = {row["number"]: (row["state"], row["value"]) for row in csv.DictReader(file)}
    assert states == {"0": ("FAIL", ""), "1": ("COMPLETE", "0.8")}
    page = (tmp_path / "search/search.md").read_text()
    assert "- Trial 0 failed: The loss is not a number." in page and "1 FAIL" in page


@pytest.mark.slow
def test_importance_is_reported_from_ten_trials_on(tmp_path, xray_folder, monkeypatch):
    runs = fake_runs(monkeypatch)
    recipe = make_recipe("none", xray_folder)
    start_search(tmp_path, recipe, n_trials=9)
    page = tmp_path / "search/search.md"
    assert page.read_text().count("importance unknown") == 3
    start_search(tmp_path, recipe, n_trials=12, resume=True)
    lines = re.findall(r"- (\w+): .*, importance (\d\.\d\d)", page.read_text())
    shares = {name: float(share) for name, share in lines}
    assert len(runs) == 12 and set(shares) == set(RANGES)
    assert max(shares, key=shares.get) == "learning_rate"
    assert sum(shares.values()) == pytest.approx(1, abs=0.02)


def test_mappings_among_the_arguments_are_kept(tmp_path):
    import yaml

    from pneumonia_hf.search.report import _to_recipe
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.finalize import _changed_arguments

    schedule = {"lr_scheduler_type": "cosine_with_restarts"}
    schedule["lr_scheduler_kwargs"] = {"num_cycles": 3}
    arguments = XrayTrainingArguments(output_dir=str(tmp_path), **schedule)
    for found in (
        yaml.safe_load(_to_recipe(make_recipe("none", tmp_path), arguments)),
        _changed_arguments(arguments),
    ):
        assert found["lr_scheduler_kwargs"] == {"num_cycles": 3}
