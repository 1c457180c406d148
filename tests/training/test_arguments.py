"""Every field of the arguments works, or is refused in a sentence before training."""

from dataclasses import MISSING, fields, replace

import numpy as np
import pytest
import torch
from helpers import draw_folder, save_tiny_body, train_tiny
from transformers import EvalPrediction

from pneumonia_hf.data.cache import decode
from pneumonia_hf.data.load import DataConfig, load_xrays
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.models.build import ModelConfig
from pneumonia_hf.training.arguments import REFUSED, XrayTrainingArguments
from pneumonia_hf.training.checkpoints import phase_folder, read_outcome
from pneumonia_hf.training.counterfactuals import CounterfactualPixels, compute_validation_metrics
from pneumonia_hf.training.recipe import Recipe
from pneumonia_hf.training.run_state import FREE, describe_run

# A value other than the default for each field that is accepted, and what else it needs.
WORKERS = {"dataloader_num_workers": 1}
STEPS = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
LAST = {"load_best_model_at_end": False}
ACCEPTED = {
    "output_dir": {},  # each run has one of its own
    "per_device_train_batch_size": {"per_device_train_batch_size": 5},
    "per_device_eval_batch_size": {"per_device_eval_batch_size": 2},
    "num_train_epochs": {"num_train_epochs": 0.5},
    "max_steps": {"max_steps": 1},
    "balance": {"balance": ["source"]},
    "learning_rate": {"learning_rate": 1e-5},
    "lr_scheduler_type": {"lr_scheduler_type": "linear"},
    "lr_scheduler_kwargs": {
        "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}
    },
    "warmup_steps": {"warmup_steps": 1},
    "optim": {"optim": "sgd"},
    "optim_args": {"optim_args": "momentum=0.9"},
    "optim_target_modules": {"optim_target_modules": "all-linear"},
    "weight_decay": {"weight_decay": 0.0},
    "adam_beta1": {"adam_beta1": 0.8},
    "adam_beta2": {"adam_beta2": 0.9},
    "adam_epsilon": {"adam_epsilon": 1e-6},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "average_tokens_across_devices": {"average_tokens_across_devices": False},
    "max_grad_norm": {"max_grad_norm": 0.0},
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "tf32": {"tf32": False},
    "activation_checkpointing": {"activation_checkpointing": False},
    "activation_checkpointing_kwargs": {"activation_checkpointing_kwargs": {"use_reentrant": True}},
    "gradient_checkpointing": {"gradient_checkpointing": False},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "torch_compile": {"torch_compile": True, "torch_compile_backend": "eager"},
    "torch_compile_backend": {"torch_compile_backend": "eager"},
    "torch_compile_mode": {"torch_compile_mode": "default", "torch_compile_backend": "eager"},
    "torch_empty_cache_steps": {"torch_empty_cache_steps": 1},
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "logging_strategy": {"logging_strategy": "epoch"},
    "logging_steps": {"logging_steps": 1},
    "logging_first_step": {"logging_first_step": True},
    "log_on_each_node": {"log_on_each_node": False},
    "logging_nan_inf_filter": {"logging_nan_inf_filter": True},
    "log_level": {"log_level": "error"},
    "log_level_replica": {"log_level_replica": "error"},
    "disable_tqdm": {"disable_tqdm": False},
    "report_to": {"report_to": ["tensorboard"]},
    "run_name": {"run_name": "a run"},
    "project": {"project": "a project"},
    "trackio_space_id": {"trackio_space_id": "me/space"},
    "trackio_bucket_id": {"trackio_bucket_id": "me/bucket"},
    "trackio_static_space_id": {"trackio_static_space_id": "me/static"},
    "eval_strategy": {"eval_strategy": "no", **LAST},
    "eval_steps": STEPS,
    "eval_delay": {"eval_delay": 2},
    "eval_on_start": {"eval_on_start": True},
    "eval_accumulation_steps": {"eval_accumulation_steps": 1, "per_device_eval_batch_size": 1},
    "save_strategy": {"save_strategy": "no", **LAST},
    "save_steps": STEPS | {"save_steps": 2, **LAST},
    "save_on_each_node": {"save_on_each_node": True},
    "save_total_limit": {"save_total_limit": 1},
    "load_best_model_at_end": LAST,
    "metric_for_best_model": {"metric_for_best_model": "robust_auroc"},
    "greater_is_better": {"greater_is_better": True},
    "restore_callback_states_from_checkpoint": {"restore_callback_states_from_checkpoint": True},
    "full_determinism": {"full_determinism": True},
    "seed": {"seed": 1},
    "data_seed": {"data_seed": 1},
    "use_cpu": {"use_cpu": True},
    "dataloader_drop_last": {"dataloader_drop_last": True, "per_device_train_batch_size": 8},
    "dataloader_num_workers": WORKERS,
    "dataloader_pin_memory": {"dataloader_pin_memory": False},
    "dataloader_persistent_workers": WORKERS | {"dataloader_persistent_workers": True},
    "dataloader_prefetch_factor": WORKERS | {"dataloader_prefetch_factor": 1},
    "dataloader_multiprocessing_context": WORKERS | {"dataloader_multiprocessing_context": "fork"},
    "train_sampling_strategy": {"train_sampling_strategy": "sequential"},
    "ddp_find_unused_parameters": {"ddp_find_unused_parameters": True},
    "ddp_bucket_cap_mb": {"ddp_bucket_cap_mb": 1},
    "ddp_broadcast_buffers": {"ddp_broadcast_buffers": False},
    "ddp_static_graph": {"ddp_static_graph": True},
    "ddp_timeout": {"ddp_timeout": 60},
    "debug": {"debug": "underflow_overflow"},
    "skip_memory_metrics": {"skip_memory_metrics": False},
    "do_train": {"do_train": True},
    "do_eval": {"do_eval": False},
    "do_predict": {"do_predict": True},
    "local_rank": {"local_rank": 0},
    "precision": {"precision": "bf16"},
    "phases": {"phases": ["head:1:1e-3", "all:1:1e-4"]},
    "layer_decay": {"layer_decay": 0.5},
    "imbalance": {"imbalance": "sampler"},
    "focal_gamma": {"imbalance": "focal", "focal_gamma": 1.0},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 0.2},
    "ema_decay": {"ema_decay": 0.5},
    "average_from": {"average_from": 0.5},
    "plateau_patience": {"lr_scheduler_type": "reduce_lr_on_plateau", "plateau_patience": 0},
    "plateau_factor": {"lr_scheduler_type": "reduce_lr_on_plateau", "plateau_factor": 0.5},
    "early_stopping_patience": {"early_stopping_patience": 0},
    "cpu_threads": {"cpu_threads": 1},
    "required_sensitivity": {"required_sensitivity": 0.9},
    "attribution_images": {"attribution_images": 1},
    "overwrite": {"overwrite": True},
    "resume": {"resume": True},
    "bootstrap_resamples": {"bootstrap_resamples": 3},
    "threshold_resamples": {"threshold_resamples": 3},
}  # fmt: skip
# Fields with tests of their own: seeds are runs, a teacher is a saved model, and so on.
ELSEWHERE = {"seeds", "teacher", "teacher_positive_label", "distil_weight", "distil_temperature",
             "unlabelled", "unlabelled_share", "bf16", "fp16", "ddp_backend",
             "box_weight", "push_to_hub", "hub_model_id", "hub_private_repo"}  # fmt: skip
# A value other than the default for each field that is refused, where True is none.
REFUSED_VALUES = {
    "eval_do_concat_batches": False,
    "dataloader_in_order": False,
    "label_names": ["labels"],
    "include_for_metrics": ["inputs"],
    "hub_strategy": "end",
    "length_column_name": "width",
    "accelerator_config": {"split_batches": True},
    "fsdp_config": {"version": 2},
    "liger_kernel_config": {"rope": True},
}


def test_every_field_is_tried_or_refused():
    names = {one.name for one in fields(XrayTrainingArguments)}
    assert names == ACCEPTED.keys() | REFUSED.keys() | ELSEWHERE
    assert not ACCEPTED.keys() & (REFUSED.keys() | ELSEWHERE)


@pytest.mark.parametrize("name", REFUSED)
def test_field_that_would_break_a_promise_is_refused_before_training(name):
    value = REFUSED_VALUES.get(name, True)
    with pytest.raises(UserError, match=f"^Leave --{name} out: .*\\.$"):
        XrayTrainingArguments(output_dir="unused", **{name: value})
    default = next(one for one in fields(XrayTrainingArguments) if one.name == name)
    if default.default is not MISSING:  # a recipe may name it all the same
        XrayTrainingArguments(output_dir="unused", **{name: default.default})


def test_arguments_can_be_copied_with_changes():
    arguments = XrayTrainingArguments(output_dir="unused", precision="bf16")
    assert replace(arguments, weight_decay=0.1, bf16=False).weight_decay == 0.1
    changed = arguments.with_changes(seed=5, output_dir="other")
    assert (changed.seed, changed.output_dir, changed.bf16) == (5, "other", True)
    assert (arguments.seed, arguments.output_dir) == (13, "unused")


def test_a_push_needs_the_name_of_a_repository():
    for given in ({"push_to_hub": True}, {"hub_model_id": "me/x"}):
        with pytest.raises(UserError, match="--push_to_hub needs --hub_model_id"):
            XrayTrainingArguments(output_dir="unused", **given)
    with pytest.raises(UserError, match="give it as owner/name"):
        XrayTrainingArguments(output_dir="unused", push_to_hub=True, hub_model_id="x")
    XrayTrainingArguments(output_dir="unused", push_to_hub=True, hub_model_id="me/x")


def test_backend_of_several_processes_is_refused_for_one(monkeypatch):
    with pytest.raises(UserError, match="--ddp_backend is for several processes"):
        XrayTrainingArguments(output_dir="unused", ddp_backend="gloo")


def test_making_arguments_leaves_the_threads_of_the_process_as_they_are(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        arguments = XrayTrainingArguments(output_dir=str(tmp_path), cpu_threads=2)
        assert torch.get_num_threads() == 3
        arguments.set_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_record_holds_every_argument_that_may_change_the_weights():
    recipe = Recipe(DataConfig(["data"]), ModelConfig("xray-cnn"))
    before = describe_run(recipe, {}, XrayTrainingArguments(output_dir="x"))
    for name in (
        ACCEPTED.keys() - FREE - {"gradient_checkpointing", "gradient_checkpointing_kwargs"}
    ):
        changed = XrayTrainingArguments(output_dir="x", **ACCEPTED[name])
        default = XrayTrainingArguments(output_dir="x")
        if getattr(changed, name) != getattr(default, name):
            assert describe_run(recipe, {}, changed)[name] != before[name], name


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_orders_by_length_are_refused(strategy):
    with pytest.raises(UserError, match="images have no length"):
        XrayTrainingArguments(output_dir="unused", train_sampling_strategy=strategy)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny network and twenty images, three of them for validation."""
    folder = tmp_path_factory.mktemp("small")
    return save_tiny_body("xray-cnn", folder / "body"), draw_folder(folder / "data", patients=10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")  # an older name
@pytest.mark.parametrize("name", ACCEPTED)
def test_training_with_every_accepted_field_scores_all_validation_images(
    tmp_path, small, name, monkeypatch
):
    if name == "full_determinism":  # it is for the whole process
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    settings = {"num_train_epochs": 1, "attribution_images": 0, "bootstrap_resamples": 2,
                "threshold_resamples": 2} | ACCEPTED[name]  # fmt: skip
    try:
        folder = train_tiny("xray-cnn", *small, tmp_path / "run", **settings)
    finally:
        torch.use_deterministic_algorithms(False)
    assert (folder / "model.safetensors").exists()
    outcome = read_outcome(phase_folder(folder, 1))
    assert np.isfinite(outcome.log[-1]["train_loss"])
    scored = "eval_auroc" in set().union(*outcome.log)
    assert scored == (name not in ("eval_strategy", "eval_delay"))


def test_scores_of_a_part_of_the_validation_images_are_never_taken_for_all(small):
    data = load_xrays(DataConfig([str(small[1])]))["validation"]
    pixels = CounterfactualPixels(decode(data, make_processor(32, [0.5] * 3, [0.5] * 3)).pixels)
    logits = np.zeros((len(pixels), 2))
    assert compute_validation_metrics(EvalPrediction(logits, pixels.labels), pixels)
    turned = np.roll(pixels.labels, 1)
    for labels in (pixels.labels[:-1], turned):
        with pytest.raises(UserError, match="other images than the validation split"):
            compute_validation_metrics(EvalPrediction(logits[: len(labels)], labels), pixels)


@pytest.mark.parametrize("metric", ["robust_auroc", "auroc"])
def test_dropping_the_last_batch_is_for_training_alone(tmp_path, small, metric):
    folder = train_tiny("xray-cnn", *small, tmp_path / "run", num_train_epochs=1,
                        attribution_images=0, dataloader_drop_last=True,
                        per_device_train_batch_size=8, per_device_eval_batch_size=64,
                        metric_for_best_model=metric)  # fmt: skip
    outcome = read_outcome(phase_folder(folder, 1))
    assert outcome.steps == 1  # of 14 images
    assert outcome.metric is not None
