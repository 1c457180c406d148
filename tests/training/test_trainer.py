import json

import numpy as np
import pytest
import torch
from helpers import (
    assert_one_sentence,
    call_script,
    save_tiny_body,
    train_tiny,
)
from safetensors.torch import load_file
from transformers import TrainerCallback

from pneumonia_hf.evaluation.perturbations import COUNTERFACTUALS
from pneumonia_hf.evaluation.recalibrate import score_validation
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.checkpoints import (
    list_checkpoints,
    phase_folder,
    read_outcome,
)


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save_tiny_body("convnextv2-tiny", tmp_path_factory.mktemp("body"))


def test_trainers_validation_scores_are_those_of_the_predictor(
    tmp_path, xray_folder, tiny_body, backbone_name, monkeypatch
):
    """The scores that the checkpoint was chosen by are those that are served, to 1e-5."""
    from pneumonia_hf.data.load import DataConfig, load_xrays
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.training import train as training

    scores = []
    measure = training.compute_validation_metrics

    def keep(prediction, validation):
        scores.append(prediction.predictions[:, 1] - prediction.predictions[:, 0])
        return measure(prediction, validation)

    monkeypatch.setattr(training, "compute_validation_metrics", keep)
    folder = train_tiny(backbone_name, tiny_body, xray_folder, tmp_path / "run",
                        num_train_epochs=2, save_total_limit=None, ema_decay=0.5)  # fmt: skip
    outcome = read_outcome(phase_folder(folder, 1))
    of_best = scores[int(outcome.checkpoint.split("-")[1]) // 5 - 1]
    temperature = json.loads((folder / "run.json").read_text())["validation"]["config"][
        "temperature"
    ]
    validation = load_xrays(DataConfig([str(xray_folder)]))["validation"]
    served = score_validation(Predictor.from_pretrained(folder), validation, False)[0][0]
    difference = 1 / (1 + np.exp(-of_best / temperature)) - 1 / (1 + np.exp(-served))
    assert np.abs(difference).max() < 1e-5


def test_checkpoint_is_chosen_by_plain_images_and_copies_together(tmp_path, xray_folder, body):
    folder = train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run",
                        metric_for_best_model="robust_auroc", ema_decay=0.5,
                        learning_rate=3e-4)  # fmt: skip
    run = json.loads((folder / "run.json").read_text())
    kinds = [f"eval_auroc_{name}_{level:g}" for name, level in COUNTERFACTUALS]
    for entry in run["training"]["history"]:
        areas = [entry["eval_auroc"], *(entry[kind] for kind in kinds)]
        assert entry["eval_robust_auroc"] == pytest.approx(np.mean(areas))
    values = [entry["eval_robust_auroc"] for entry in run["training"]["history"]]
    assert run["training"]["best_validation_metric"] == max(values)
    # The saved network's scores of the same copies, through the predictor, are the Trainer's.
    best = run["training"]["history"][int(np.argmax(values))]
    found = run["validation"]["copies_auroc"]
    expected = {f"{name} {at:g}": best[kind] for (name, at), kind in
                zip(COUNTERFACTUALS, kinds, strict=True)}  # fmt: skip
    assert found == pytest.approx(expected)
    assert len(set(found.values())) > 1
    card = (folder / "README.md").read_text()
    assert f"frame swap 0.2 {found['frame_swap 0.2']:.3f}" in card


@pytest.mark.parametrize(
    "changes",
    [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 0.5}],
    ids=lambda changes: " ".join(changes),
)
def test_mixed_batches_have_the_shares_of_their_classes(changes):
    from pneumonia_hf.training.trainer import _make_mix

    arguments = XrayTrainingArguments(output_dir="unused", **changes)
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 1, 0])
    pixels = labels.view(-1, 1, 1, 1).float().expand(4, 1, 32, 32) * 255
    for _ in range(10):
        mixed, classes = _make_mix(arguments, 2)(pixels.contiguous(), labels)
        assert classes.sum(dim=1).tolist() == pytest.approx([1] * 4)
        # An image of class 1 is white here: its share of white is its share of the class.
        assert (mixed.mean(dim=(1, 2, 3)) / 255).tolist() == pytest.approx(
            classes[:, 1].tolist(), abs=1e-4
        )


def test_plateau_follows_the_direction_of_the_metric(tmp_path, xray_folder, body, monkeypatch):
    from pneumonia_hf.training import train as training

    measure = training.compute_validation_metrics
    rates = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            rates.append(optimizer.param_groups[0]["lr"])

    scores = iter([0.5, 0.6, 0.55, 0.7])
    monkeypatch.setattr(
        training,
        "compute_validation_metrics",
        lambda prediction, validation: measure(prediction, validation) | {"auroc": next(scores)},
    )
    train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run", callbacks=[Look()],
               num_train_epochs=4, learning_rate=1e-3, plateau_patience=0, plateau_factor=0.1,
               lr_scheduler_type="reduce_lr_on_plateau", early_stopping_patience=0)  # fmt: skip
    assert rates == pytest.approx([1e-3] * 15 + [1e-4] * 5)


def test_checkpoint_may_be_chosen_by_the_loss(tmp_path, xray_folder, body, monkeypatch):
    from pneumonia_hf.training import train as training

    measure = training.compute_validation_metrics
    losses = iter([0.5, 0.2, 0.3])
    monkeypatch.setattr(
        training,
        "compute_validation_metrics",
        lambda prediction, validation: measure(prediction, validation) | {"loss": next(losses)},
    )
    folder = train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run",
                        metric_for_best_model="loss")  # fmt: skip
    run = json.loads((folder / "run.json").read_text())["training"]
    assert run["best_checkpoint"] == "phase-1/checkpoint-10"
    assert run["best_validation_metric"] == 0.2


def test_last_checkpoint_is_saved_where_the_best_is_not_wanted(tmp_path, xray_folder, body):
    folder = train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run",
                        load_best_model_at_end=False, eval_strategy="no", save_strategy="no",
                        early_stopping_patience=0)  # fmt: skip
    run = json.loads((folder / "run.json").read_text())["training"]
    assert run["best_checkpoint"] == "phase-1/checkpoint-15"


@pytest.mark.slow
def test_accumulation_and_activation_checkpointing_give_the_same_weights(tmp_path, xray_folder):
    vit = save_tiny_body("vit-base", tmp_path / "vit")
    settings = {"augment": 0.0, "num_train_epochs": 1, "learning_rate": 1e-3}
    whole = train_tiny("vit-base", vit, xray_folder, tmp_path / "whole",
                       per_device_train_batch_size=8, **settings)  # fmt: skip
    halves = train_tiny("vit-base", vit, xray_folder, tmp_path / "halves",
                        per_device_train_batch_size=4, gradient_accumulation_steps=2,
                        **settings)  # fmt: skip
    spare = train_tiny("vit-base", vit, xray_folder, tmp_path / "spare",
                       per_device_train_batch_size=8, activation_checkpointing=True,
                       **settings)  # fmt: skip
    states = [
        load_file(list_checkpoints(phase_folder(folder, 1))[-1] / "model.safetensors")
        for folder in (whole, halves, spare)
    ]
    for other in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--imbalance", "sample"], ["--imbalance", "'sample'", "sampler"]),
        (["--metric_for_best_model", "roc"], ["--metric_for_best_model", "auroc"]),
        (["--ema_decay", "1"], ["ema_decay is 1.0", "less than 1"]),
        (["--ema_decay", "0.9", "--average_from", "0.5"], ["leave one out"]),
        (["--mixup", "-1"], ["mixup is -1.0"]),
        (["--layer_decay", "0"], ["layer_decay is 0.0"]),
        (["--distil_weight", "2"], ["distil_weight is 2.0"]),
        (["--seeds", "1", "1"], ["two or more different"]),
        (["--phases", "head:1"], ["PART:EPOCHS:RATE"]),
        (["--phases", "all:1:1", "--trainable_layer_groups", "1"], ["leave one out"]),
        (["--class_weights", "false"], ["Unknown flag --class_weights"]),
        (["--teacher", "no/where/at/all"], ["no/where/at/all"]),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_one_sentence(tmp_path, xray_folder, body, flags, words):
    common = ["--backbone", "convnextv2-tiny", "--weights", body, "--image_size", 64]
    common += ["--data_dir", xray_folder, "--output_dir", tmp_path / "run"]
    done = call_script("train.py", *common, *flags)
    assert_one_sentence(done, *words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--plateau_factor", "1"], ["plateau_factor is 1.0"]),
        (["--num_train_epochs", "0"], ["num_train_epochs is 0.0"]),
        (["--num_train_epochs", "nan"], ["num_train_epochs is nan"]),
        (["--gradient_accumulation_steps", "0"], ["gradient_accumulation_steps is 0"]),
        (["--per_device_train_batch_size", "0"], ["per_device_train_batch_size is 0"]),
        (["--dataloader_num_workers", "-1"], ["dataloader_num_workers is -1"]),
        (["--adam_beta1", "2"], ["adam_beta1 is 2.0"]),
        (["--optim", "adamw_bnb_8bit"], ["The Trainer refuses"]),
        (["--lr_scheduler_type", "cosine_with_min_lr"], ["The Trainer refuses"]),
        (["--lr_scheduler_type", "greedy"], ["greedy"]),
        (["--activation_checkpointing"], ["The Trainer refuses", "checkpointing"]),
        (["--save_only_model"], ["Leave --save_only_model out"]),
        (["--resume_from_checkpoint", "x"], ["use --resume"]),
        (["--push_to_hub"], ["--hub_model_id"]),
        (["--imbalance", "sampler", "--train_sampling_strategy", "sequential"], ["sampler"]),
        (["--dataloader_drop_last", "--per_device_train_batch_size", "999"], ["no whole batch"]),
        (["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "2",
          "--save_steps", "4"], ["--save_steps and --eval_steps alike"]),
    ],
)  # fmt: skip
def test_flags_of_transformers_that_would_break_a_run_are_refused_in_one_sentence(
    tmp_path, xray_folder, flags, words
):
    common = ["--backbone", "xray-cnn", "--image_size", 64, "--precision", "fp32"]
    common += ["--data_dir", xray_folder, "--output_dir", tmp_path / "run", "--max_steps", 1]
    common += ["--channels_last", "false", "--report_to", "none"]
    assert_one_sentence(call_script("train.py", *common, *flags), *words)
    # Nothing is left that would prevent the corrected command.
    assert not list((tmp_path / "run").glob("checkpoints/phase-*/checkpoint-*"))


def test_reported_metric_is_that_of_the_saved_weights(tmp_path, xray_folder, body, monkeypatch):
    from pneumonia_hf.training import train as training

    measure = training.compute_validation_metrics
    scores = iter([0.9, 0.8, 0.7, 0.6])
    monkeypatch.setattr(
        training,
        "compute_validation_metrics",
        lambda prediction, validation: measure(prediction, validation) | {"auroc": next(scores)},
    )
    folder = train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run",
                        load_best_model_at_end=False, eval_strategy="steps", eval_steps=3,
                        save_strategy="steps", save_steps=500, num_train_epochs=2)  # fmt: skip
    run = json.loads((folder / "run.json").read_text())["training"]
    assert run["best_checkpoint"] == "phase-1/checkpoint-10"
    assert run["best_validation_metric"] == 0.6  # and not 0.9, which no checkpoint has
