import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForImageClassification

from pneumonia_hf import Predictor
from pneumonia_hf.data.load import DataConfig, load_xrays
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.perturbations import ROBUST
from pneumonia_hf.evaluation.recalibrate import score_validation
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.statistics.calibration import fit_temperature
from pneumonia_hf.statistics.log_odds import to_probability
from pneumonia_hf.statistics.metrics import compute_metrics
from pneumonia_hf.training.seeds import SUMMARISED
from pneumonia_hf.training.seeds import summarise_seeds as summarise

SEEDS = (13, 14, 15)
summarise_seeds = partial(summarise, resamples=20, threshold_resamples=50)


def copy_run(model: Path, folder: Path, seed: int) -> Path:
    """Copy a saved model as if of another seed, with other weights and metrics."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("checkpoints"))
    network = AutoModelForImageClassification.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = head_of(network).weight
        weight += 0.2 * torch.randn(weight.shape, generator=generator)
    network.save_pretrained(folder)
    run = json.loads((folder / "run.json").read_text())
    run["training"]["seed"] = seed
    run["validation"]["metrics"]["auroc"]["value"] = 0.9 + (seed - 13) / 100
    run["validation"]["config"]["threshold"] = (seed - 12) / 10
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def change_run(member: Path, change) -> None:
    run = json.loads((member / "run.json").read_text())
    change(run)
    (member / "run.json").write_text(json.dumps(run))


@pytest.fixture(scope="module")
def validation(xray_folder):
    return load_xrays(DataConfig([str(xray_folder)]))["validation"]


@pytest.fixture
def runs(tmp_path, tiny_model) -> list[Path]:
    return [copy_run(tiny_model, tmp_path / f"seed-{seed}", seed) for seed in SEEDS]


def test_spread_over_the_seeds_is_that_of_their_metrics(runs, validation, tmp_path):
    summary = summarise_seeds(tmp_path, runs, validation)
    assert [one["seed"] for one in summary["seeds"]] == list(SEEDS)
    auroc, threshold = summary["spread"]["auroc"], summary["spread"]["threshold"]
    assert (auroc["low"], auroc["high"]) == (0.9, 0.92)
    assert auroc["mean"] == pytest.approx(0.91)
    assert auroc["sd"] == pytest.approx(0.01)  # by n it would be 0.0082
    assert threshold["mean"] == pytest.approx(0.2) and threshold["sd"] == pytest.approx(0.1)
    assert summary["spread"].keys() == {*SUMMARISED, "threshold"}
    assert json.loads((tmp_path / "seeds.json").read_text()) == summary
    lines = (tmp_path / "seeds.md").read_text().splitlines()
    rows = {line.split(" | ")[0]: line for line in lines if line.startswith("| ")}
    assert "0.9200" in rows["| seed 15 (`seed-15`)"]
    assert "0.9100" in rows["| mean"] and "0.0100" in rows["| standard deviation"]
    assert f"{summary['ensemble']['threshold']:.4f}" in rows["| **ensemble**"]
    assert not list(tmp_path.glob(".*"))


def test_seeds_chosen_by_copies_have_their_robust_auroc(runs, validation, tmp_path):
    for number, run in enumerate(runs):

        def add(run: dict, number: int = number) -> None:
            run["training"]["metric_for_best_model"] = ROBUST
            run["validation"]["copies_auroc"] = {"a": 0.8 + number / 100, "b": 0.6}

        change_run(run, add)
    summary = summarise_seeds(tmp_path, runs, validation)
    expected = [(0.9 + n / 100 + 0.8 + n / 100 + 0.6) / 3 for n in range(3)]
    assert [one[ROBUST] for one in summary["seeds"]] == pytest.approx(expected)
    assert summary["spread"][ROBUST]["sd"] == pytest.approx(0.02 / 3)
    scores, _ = score_validation(Predictor.from_pretrained(tmp_path), validation, True)
    areas = [roc_auc_score(validation["label"][:], one) for one in scores]
    assert summary["ensemble"]["metrics"][ROBUST]["value"] == pytest.approx(np.mean(areas))
    assert ROBUST in (tmp_path / "seeds.md").read_text()


def test_saved_ensemble_has_the_metrics_in_its_file(runs, validation, tmp_path):
    ensemble = summarise_seeds(tmp_path, runs, validation)["ensemble"]
    assert json.loads((tmp_path / "ensemble.json").read_text()) == ensemble
    assert ensemble["members"] == ["seed-13", "seed-14", "seed-15"]
    predictor = Predictor.from_pretrained(tmp_path)
    point = predictor.operating_point
    assert (point.threshold, point.low, point.high) == tuple(
        ensemble[key] for key in ("threshold", "refer_low", "refer_high")
    )
    images = [image for _, image in open_images(validation)]
    probabilities = [one.probability for one in predictor.predict_files(images)]
    values = compute_metrics(validation["label"][:], probabilities, point.threshold)
    for name, value in values.items():
        expected = pytest.approx(value, abs=1e-6) if np.isfinite(value) else None  # null in JSON
        assert ensemble["metrics"][name]["value"] == expected, name
    # A moved ensemble is the same model.
    moved = shutil.copytree(tmp_path, tmp_path / "elsewhere" / "run")
    again = [one.probability for one in Predictor.from_pretrained(moved).predict_files(images)]
    assert again == probabilities


def test_temperature_of_the_ensemble_is_fitted_to_the_mean_log_odds(runs, validation, tmp_path):
    ensemble = summarise_seeds(tmp_path, runs, validation)["ensemble"]
    members = [Predictor.from_pretrained(run) for run in runs]
    log_odds = np.mean(
        [score_validation(member, validation, False)[0][0] for member in members], axis=0
    )
    labels = np.array(validation["label"][:])

    def loss(temperature: float) -> float:
        truth = np.where(labels == 1, log_odds, -log_odds)
        losses = -np.log(to_probability(truth / temperature))
        return np.mean([losses[labels == label].mean() for label in (0, 1)])

    best = ensemble["temperature"]
    assert best == fit_temperature(labels, log_odds).value
    if log_odds[labels == 1].min() > log_odds[labels == 0].max():
        assert best >= 1  # nothing shows that the members are underconfident
    else:  # the prior moves it a little from the minimum towards 1
        assert loss(best) <= min(loss(best * 1.5), loss(best / 1.5))
    assert Predictor.from_pretrained(tmp_path).temperature == best


def test_ensemble_has_the_required_sensitivity(runs, validation, tmp_path):
    ensemble = summarise_seeds(tmp_path, runs, validation, required_sensitivity=1.0)["ensemble"]
    assert ensemble["metrics"]["sensitivity"]["value"] == 1
    assert ensemble["required_sensitivity"] == 1


def test_runs_chosen_on_other_images_are_refused(runs, validation, tmp_path):
    with pytest.raises(UserError, match="seed-13 was chosen on other validation images"):
        summarise_seeds(tmp_path, runs, validation.select(range(len(validation) - 1)))
    change_run(runs[1], lambda run: run["hashes"]["validation"].pop())
    with pytest.raises(UserError, match="seed-13 and seed-14 were chosen on different"):
        summarise_seeds(tmp_path, runs, validation)
    assert not (tmp_path / "ensemble.json").exists()


def test_images_that_the_runs_could_not_read_are_left_out(runs, validation, xray_folder, tmp_path):
    expected = summarise_seeds(tmp_path, runs, validation)
    broken = tmp_path / "broken.png"
    broken.write_text("text named .png")
    row = validation.select([0])
    image = {"bytes": None, "path": str(broken)}
    row = row.map(lambda _: {"image": image}, features=row.features)
    assert summarise_seeds(tmp_path, runs, concatenate_datasets([validation, row])) == expected


def test_members_that_lie_elsewhere_or_are_incomplete_are_refused(
    runs, validation, tiny_model, tmp_path
):
    with pytest.raises(UserError, match="does not lie in"):
        summarise_seeds(tmp_path, [tiny_model], validation)
    with pytest.raises(UserError, match="No members"):
        summarise_seeds(tmp_path, [], validation)
    (runs[2] / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"seed-15 holds no saved model"):
        summarise_seeds(tmp_path, runs, validation)


def test_one_seed_has_no_standard_deviation_and_undefined_metrics_no_mean(
    runs, validation, tmp_path
):
    summary = summarise_seeds(tmp_path, runs[:1], validation)
    assert summary["spread"]["auroc"]["sd"] is None
    served = Predictor.from_pretrained(tmp_path)  # at the point chosen for its temperature
    assert served.operating_point.threshold == summary["ensemble"]["threshold"]
    change_run(runs[1], lambda run: run["validation"]["metrics"]["precision"].update(value=None))
    summary = summarise_seeds(tmp_path, runs[:2], validation)
    assert summary["spread"]["precision"]["mean"] is None
    assert summary["spread"]["auroc"]["sd"] == pytest.approx(0.01 / np.sqrt(2))
    assert "| - |" in (tmp_path / "seeds.md").read_text()
