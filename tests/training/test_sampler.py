from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (
    TINY_CONFIGS,
    TINY_SIZES,
    call_script,
    draw_folder,
    save_tiny_body,
    train_tiny,
)
from torch.utils.data import SequentialSampler

from pneumonia_hf.errors import UserError
from pneumonia_hf.models.xray_cnn import XrayCnnConfig
from pneumonia_hf.training import trainer
from pneumonia_hf.training.sampler import BalancedSampler, MergingBatchSampler, draws_balanced


def test_balanced_sampler_draws_both_classes_equally_and_differently_each_epoch():
    labels = np.array([0] * 100 + [1] * 900)
    sampler = BalancedSampler(labels, np.zeros(1000), seed=1)
    first = list(sampler)
    assert len(first) == 1000 == len(sampler)
    assert 0.45 < np.mean(labels[first]) < 0.55
    assert len(set(first)) > 450  # nearly all images of the rare class
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again = BalancedSampler(labels, np.zeros(1000), seed=1)
    again.set_epoch(1)
    assert list(again) == second


def test_sampler_balances_the_classes_within_each_site_so_that_the_site_never_tells_the_class():
    # 900 of the first site, mostly ill; 100 of the second, mostly healthy: roots 30 and 10.
    sites = np.array([0] * 900 + [1] * 100)
    labels = np.array([0] * 100 + [1] * 800 + [0] * 90 + [1] * 10)
    sampler = BalancedSampler(labels, sites, seed=1)
    drawn = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    assert np.mean(sites[drawn] == 1) == pytest.approx(10 / 40, abs=0.01)
    for site in (0, 1):
        of_site = [row for row in drawn if sites[row] == site]
        assert np.mean(labels[of_site]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("images", "size", "sizes"), [
    (17, 16, [17]), (33, 16, [16, 17]), (32, 16, [16, 16]), (18, 16, [16, 2]), (3, 2, [3]),
    (2, 16, [2]),
])  # fmt: skip
def test_last_batch_of_one_image_joins_the_one_before(images, size, sizes):
    batches = MergingBatchSampler(SequentialSampler(range(images)), size)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)
    assert [row for batch in batches for row in batch] == list(range(images))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Images of which fourteen are for training."""
    return draw_folder(tmp_path_factory.mktemp("odd") / "data", patients=10)


@pytest.mark.parametrize(
    "name", ["xray-cnn", pytest.param("efficientnet-b0", marks=pytest.mark.slow)]
)
def test_every_epoch_trains_on_all_images_where_one_is_left_for_the_last_batch(
    tmp_path, odd, name, monkeypatch
):
    monkeypatch.setitem(TINY_CONFIGS, "xray-cnn", XrayCnnConfig(widths=[8] * 5, depths=[1] * 5))
    size = 16 if name == "xray-cnn" else 32  # at which the deepest map is 1 x 1
    monkeypatch.setitem(TINY_SIZES, name, size)
    seen = []
    monkeypatch.setattr(trainer, "augment", lambda pixels, _: seen.append(len(pixels)) or pixels)
    settings = {"num_train_epochs": 1, "attribution_images": 0, "bootstrap_resamples": 2,
                "threshold_resamples": 2}  # fmt: skip
    body = save_tiny_body(name, tmp_path / "body")
    train_tiny(name, body, odd, tmp_path / "run", per_device_train_batch_size=13, **settings)
    assert seen == [14]
    with pytest.raises(UserError, match="per_device_train_batch_size to 2 or more"):
        train_tiny(name, body, odd, tmp_path / "one", per_device_train_batch_size=1, **settings)
    assert not list((tmp_path / "one").glob("checkpoints/phase-*/checkpoint-*"))
    seen.clear()
    monkeypatch.setitem(TINY_SIZES, name, 2 * size)  # a deepest map of 2 x 2
    train_tiny(name, body, odd, tmp_path / "two", per_device_train_batch_size=13, **settings)
    assert seen == [13, 1]


def test_several_sites_are_balanced_by_drawing_and_not_in_the_loss_too():
    one, two = np.zeros(4), np.array([0, 0, 1, 1])
    cases = {(i, len(np.unique(s))): draws_balanced(SimpleNamespace(imbalance=i, balance=None), s)
             for i in ("weights", "sampler", "focal", "none") for s in (one, two)}  # fmt: skip
    assert {case for case, drawn in cases.items() if drawn} == {
        ("sampler", 1),
        ("sampler", 2),
        ("weights", 2),
        ("focal", 2),
    }
    assert draws_balanced(SimpleNamespace(imbalance="none", balance=["view"]), one)


def test_sampler_draws_both_classes_of_a_site_with_the_same_mix_of_cells():
    # Of the first site, the cell goes with the class; the second has one cell a class.
    sites = np.repeat([0, 1], [400, 100])
    labels = np.r_[np.repeat([0, 1], 200), np.repeat([0, 1], 50)]
    cells = np.r_[np.repeat([0, 1], [180, 20]), np.repeat([0, 1], [40, 160]), labels[400:]]
    sampler = BalancedSampler(labels, sites, seed=1, cells=cells)
    drawn = []
    for epoch in range(40):
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    drawn = np.array(drawn)
    for label in (0, 1):
        of_first = drawn[(sites[drawn] == 0) & (labels[drawn] == label)]
        assert np.mean(cells[of_first]) == pytest.approx(180 / 400, abs=0.02)
    assert np.mean(labels[drawn]) == pytest.approx(0.5, abs=0.02)
    assert np.mean(sites[drawn] == 1) == pytest.approx(10 / 30, abs=0.02)


@pytest.mark.slow
def test_training_on_two_sites_draws_balanced_and_does_not_weigh_the_loss(
    tmp_path, xray_folder, monkeypatch
):
    from pneumonia_hf.training import train as training

    made = []
    for name in ("XrayLoss", "XrayTrainer"):
        original = getattr(training, name)
        monkeypatch.setattr(
            training,
            name,
            lambda *a, original=original, **k: made.append(original(*a, **k)) or made[-1],
        )
    other = draw_folder(tmp_path / "other", patients=20, seed=7000)
    flags = ["--backbone", "xray-cnn", "--image_size", 64, "--max_steps", 1, "--report_to", "none"]
    flags += ["--weights", "none", "--attribution_images", 0, "--cpu_threads", 1]
    flags += ["--bootstrap_resamples", 20, "--threshold_resamples", 20]
    flags += ["--metric_for_best_model", "auroc"]
    for sources in ([f"a={xray_folder}"], [f"a={xray_folder}", f"b={other}"]):
        run = tmp_path / f"run-{len(sources)}"
        done = call_script("train.py", *flags, "--data_dir", *sources, "--output_dir", run)
        assert done.returncode == 0, done.stderr[-2000:]
    of_one, one, of_two, two = made
    assert len(set(of_one.weights.tolist())) == 2 and of_two.weights is None
    assert not isinstance(one.sampler, BalancedSampler)
    assert isinstance(two.sampler, BalancedSampler) and len(two.sampler.rows) == 4
