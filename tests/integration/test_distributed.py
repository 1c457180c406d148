"""Several processes give the same weights as one, and count every image once."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from forks import fork_two
from helpers import ROOT, TINY_SIZES, call_script, draw_folder, save_tiny_body
from safetensors.torch import load_file
from same_bits import assert_same_last_checkpoint

MACHINES = ROOT / "train_scripts" / "accelerate"
STEPS, TOTAL_BATCH, LEARNING_RATE = 20, 8, 0.1
COUNTS = {  # images of each split: NORMAL, PNEUMONIA
    # A multiple of the batch: else the last batch of several processes is padded.
    "train": (24, 16),
    "val": (7, 6),  # not a multiple of the batch
    "test": (2, 2),
}
PLAIN, AUGMENTED = ["--augment_strength", "0"], ["--augment_strength", "1"]

# accelerate shards on GPUs only; here it takes two CPU processes for GPUs.
SHARDED = """
import sys

import accelerate.state as state
from accelerate.utils import DistributedType

make = state.AcceleratorState.__init__


def make_with_gpus(self, *arguments, **settings):
    shared = state.PartialState(cpu=True)._shared_state
    if shared["distributed_type"] == DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_GPU
    make(self, *arguments, **settings)


state.AcceleratorState.__init__ = make_with_gpus
sys.path.insert(0, {root!r})
from train_scripts.train import main
main()
"""


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Path:
    """Splits with unequal classes, without a common patient."""
    folder = tmp_path_factory.mktemp("splits")
    for number, (split, counts) in enumerate(COUNTS.items(), start=1):
        draw_folder(folder / split, patients=max(counts), seed=5000 * number)
        for label, count in zip(("NORMAL", "PNEUMONIA"), counts, strict=True):
            images = sorted((folder / split / label).iterdir())
            for image in images[count:]:
                image.unlink()
            for image in images[:count]:
                name = image.name.replace("IM-0", f"IM-{number}")
                image.rename(image.with_name(name.replace("person", f"person{number}00")))
    return folder


@pytest.fixture(scope="module")
def body(tmp_path_factory) -> Path:
    return save_tiny_body("vit-base", tmp_path_factory.mktemp("body"))


@pytest.fixture(scope="module")
def flags(splits, body):
    """Return a function that makes the flags of a run of 20 steps."""

    def make(output: Path, processes: int) -> list[str]:
        values = {
            "--backbone": "vit-base",
            "--weights": body,
            "--image_size": TINY_SIZES["vit-base"],
            "--data_dir": splits,
            "--smallest_validation": 0,
            "--output_dir": output,
            "--max_steps": STEPS,
            "--per_device_train_batch_size": TOTAL_BATCH // processes,
            "--per_device_eval_batch_size": 4,
            "--eval_on_start": "true",  # while all runs have the same weights
            # AdamW or clipping would hide a wrong scale of the gradients.
            "--optim": "sgd",
            "--learning_rate": LEARNING_RATE,
            "--max_grad_norm": 1000,
            "--early_stopping_patience": 0,
            "--precision": "fp32",
            "--cpu_threads": 1,
            "--attribution_images": 1,
            "--bootstrap_resamples": 20,
            "--threshold_resamples": 50,
            "--report_to": "none",
            "--disable_tqdm": "true",
        }
        return [str(word) for pair in values.items() for word in pair]

    return make


def launch(*command: object) -> None:
    """Run a Python module that launches two processes over gloo."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        timeout=240,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def accelerate(machine: str, script: Path, *arguments: str) -> None:
    config = MACHINES / f"{machine}.yaml"
    launch("accelerate.commands.launch", "--quiet", "--config_file", config, script, *arguments)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", 2)
TRAIN = ROOT / "train_scripts" / "train.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, flags) -> Path:
    """The same run, without augmentation, in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    done = call_script("train.py", *flags(folder / "one", 1), *PLAIN)
    assert done.returncode == 0, done.stderr[-2000:]
    machine = MACHINES / "two_cpu_processes.yaml"
    fork_two(machine, TRAIN, *flags(folder / "two", 2), *PLAIN, log=folder / "log")
    return folder


def load_last(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights after the last step."""
    return load_file(next(run.rglob(f"checkpoint-{STEPS}")) / "model.safetensors")


def read_log(run: Path) -> list[dict[str, float]]:
    state = next(run.rglob(f"checkpoint-{STEPS}")) / "trainer_state.json"
    return json.loads(state.read_text())["log_history"]


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits_by_another_launcher(tmp_path, flags):
    """With augmentation, and our own sampler, which accelerate shards; step 7 is in epoch 2."""
    more = [*AUGMENTED, "--imbalance", "sampler", "--save_strategy", "steps", "--save_steps", "7"]
    more += ["--load_best_model_at_end", "false", "--save_total_limit", "9", "--resume"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    accelerate("two_cpu_processes", TRAIN, *flags(whole, 2), *more)
    first = whole / "checkpoints" / "phase-1" / "checkpoint-7"
    shutil.copytree(first, cut / "checkpoints" / "phase-1" / first.name)
    shutil.copy(whole / "checkpoints" / "recipe.json", cut / "checkpoints")
    launch(*TORCHRUN, TRAIN, *flags(cut, 2), *more)
    # The second process imports rich after training has begun, which draws a number from Python's
    # generator after each start; training itself uses only torch's.
    assert_same_last_checkpoint(whole, cut, after=7, ignored="rng_state_1.pth/python")
    assert len(list((cut / "checkpoints").rglob(f"checkpoint-{STEPS}/rng_state_*.pth"))) == 2


@pytest.mark.slow
def test_two_processes_with_half_the_batch_each_train_the_weights_of_one(runs, body):
    one, two = load_last(runs / "one"), load_last(runs / "two")
    begun = load_file(body / "model.safetensors")
    moved = max(
        float((one[f"vit.{name}"] - value).abs().max())
        for name, value in begun.items()
        if f"vit.{name}" in one
    )
    assert moved > 0.01
    assert largest_difference(one, two) < 1e-5
    for run, processes in (("one", 1), ("two", 2)):
        training = json.loads((runs / run / "run.json").read_text())["training"]
        assert training["processes"] == processes
        assert training["per_device_train_batch_size"] * processes == TOTAL_BATCH


@pytest.mark.slow
def test_metrics_of_two_processes_count_every_image_once(runs):
    one, two = (
        [entry for entry in read_log(runs / run) if "eval_auroc" in entry] for run in ("one", "two")
    )
    assert (
        [entry["step"] for entry in one] == [entry["step"] for entry in two] == [0, 5, 10, 15, 20]
    )
    start, also_start = one[0], two[0]
    for name in ("auroc", "auprc", "accuracy", "sensitivity", "specificity"):
        assert start[f"eval_{name}"] == also_start[f"eval_{name}"], name
    # The last batch has another size than in one process, and therefore another rounding error.
    for name in ("loss", "brier", "ece"):
        assert start[f"eval_{name}"] == pytest.approx(also_start[f"eval_{name}"], abs=1e-7), name
    right = start["eval_accuracy"] * sum(COUNTS["val"])
    assert right == pytest.approx(round(right), abs=1e-9)


@pytest.mark.slow
def test_sharded_training_ends_in_a_plain_model_folder(runs, flags, tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED.format(root=str(ROOT)))
    flags = [*flags(tmp_path / "run", 2), *PLAIN]
    fork_two(MACHINES / "fsdp.yaml", script, *flags, log=tmp_path / "log")
    checkpoint = next((tmp_path / "run").rglob(f"checkpoint-{STEPS}"))
    assert list(checkpoint.glob("pytorch_model_fsdp*")), "the weights were not sharded"
    assert largest_difference(load_last(runs / "one"), load_last(tmp_path / "run")) < 1e-5
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    name = Path(run["training"]["best_checkpoint"]).name
    best = load_file(next((tmp_path / "run").rglob(name)) / "model.safetensors")
    saved = load_file(tmp_path / "run" / "model.safetensors")
    temperature = run["validation"]["config"]["temperature"]
    for key, value in saved.items():
        scale = temperature if key.startswith("classifier.") else 1
        assert torch.equal(value, best[key] / scale), key


@pytest.fixture(params=sorted(MACHINES.glob("*.yaml")), ids=lambda path: path.stem)
def machine(request) -> Path:
    return request.param


def read_machine(path: Path) -> argparse.Namespace:
    """Return the arguments that `accelerate launch` reads from a file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    typed = ["--config_file", str(path)]
    if path.stem == "several_machines":
        typed += ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
        typed += ["--main_process_port", "29500"]
    typed.append("train.py")
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(typed))
    return arguments


def test_accelerate_knows_every_key_of_a_machine_file(machine):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    load_config_from_file(str(machine))  # raises on unknown keys, except in fsdp_config
    flags = {action.dest for action in launch_command_parser()._actions}
    assert set(yaml.safe_load(machine.read_text()).get("fsdp_config", {})) <= flags


def test_every_machine_file_starts_the_processes_of_its_name(machine):
    arguments = read_machine(machine)
    alone = machine.stem in ("one_cpu", "one_gpu")
    assert arguments.multi_gpu == (not alone and machine.stem != "fsdp")
    assert arguments.use_fsdp == (machine.stem == "fsdp")
    assert arguments.num_processes == (1 if alone else 2)
    assert arguments.num_machines == (2 if machine.stem == "several_machines" else 1)
    assert arguments.mixed_precision == "no"  # else it would silently override --precision


def test_readme_lists_every_machine_file():
    text = (MACHINES / "README.md").read_text()
    for path in MACHINES.glob("*.yaml"):
        assert f"`{path.name}`" in text
