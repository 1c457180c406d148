"""Compare the whole state of a resumed run with that of an uninterrupted one, bit by bit.

Not part of conftest.py: kill_training.py uses it without pytest.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from pneumonia_hf.training.checkpoints import STATE_FILE, last_checkpoint, phase_folder

# Files that every checkpoint must have, or the comparison would be incomplete.
ALWAYS = {"model.safetensors", "optimizer.pt", "scheduler.pt", STATE_FILE}
PROGRESS = ("global_step", "max_steps", "epoch", "best_global_step", "best_metric")


def assert_same_model(one: Path, two: Path) -> None:
    """Check that two model folders hold the same weights.

    They are those of the best checkpoint, which may be older than the interruption: this check
    alone does not show that training continued correctly.
    """
    states = [load_file(folder / "model.safetensors") for folder in (one, two)]
    different = list_differences(*states)
    assert not different, f"the saved models differ in {different[:5]}"


def assert_same_last_checkpoint(
    one: Path, two: Path, after: int, phase: int = 1, ignored: str | None = None
) -> None:
    """Check that the last checkpoints of a phase of two runs hold the same state.

    That is weights, averaged weights if there are any, optimizer, scheduler, the random state of
    each process, the step, and the results of each evaluation.

    Args:
        one, two: output folders of the runs.
        after: the step at which one of them was interrupted; the checkpoints must be newer.
        phase: the number of the phase.
        ignored: what may differ, as FILE/KEY.
    """
    last = [last_checkpoint(phase_folder(run, phase)) for run in (one, two)]
    assert all(last), f"phase {phase} has no checkpoint in {last.index(None) + 1} of 2"
    states = [read_checkpoint(checkpoint) for checkpoint in last]
    steps = [state[STATE_FILE]["global_step"] for state in states]
    assert [path.name for path in last] == [f"checkpoint-{step}" for step in steps]
    assert min(steps) > after, f"the last checkpoints are of steps {steps}, interrupted at {after}"
    different = list_differences(*states)
    if ignored is not None:
        different = [where for where in different if not where.startswith(f"/{ignored}/")]
    assert not different, f"{last[0].name} of phase {phase} differs in {shorten(different)}"


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Return the training state in a checkpoint, by file."""
    state: dict[str, Any] = {}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            state[path.name] = load_file(path)
        elif path.suffix == ".pt" or path.name.startswith("rng_state"):
            state[path.name] = torch.load(path, weights_only=False)
        elif path.name == STATE_FILE:
            progress = json.loads(path.read_text())
            state[path.name] = {name: progress[name] for name in PROGRESS}
            state[path.name]["evaluations"] = [
                {name: value for name, value in entry.items() if not is_time(name)}
                for entry in progress["log_history"]
                if "eval_loss" in entry
            ]
    absent = ALWAYS - state.keys()
    assert not absent, f"{checkpoint.name} lacks {sorted(absent)}"
    assert any(name.startswith("rng_state") for name in state), "no random state is saved"
    return state


def is_time(name: str) -> bool:
    """Return whether a value of the log is a duration or a speed."""
    return name.endswith(("_runtime", "_per_second"))


def list_differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Return where two nested states differ; tensors and arrays in any bit, the rest by ==."""
    if type(one) is not type(two):
        return [where]
    if isinstance(one, dict):
        lacking = [f"{where}/{key}" for key in one.keys() ^ two.keys()]
        both = [(key, one[key], two[key]) for key in one if key in two]
    elif isinstance(one, list | tuple):
        lacking = [where] if len(one) != len(two) else []
        both = list(zip(range(len(one)), one, two, strict=False))
    else:
        return [] if is_same(one, two) else [where]
    for key, mine, other in both:
        lacking += list_differences(mine, other, f"{where}/{key}")
    return lacking


def is_same(one: Any, two: Any) -> bool:
    """Return whether two values of the same type are the same."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    if isinstance(one, float) and math.isnan(one):  # the precision without positives
        return math.isnan(two)
    return bool(one == two)


def shorten(different: list[str]) -> str:
    """Return the files of the differences, and the first difference in each."""
    first: dict[str, str] = {}
    for where in different:
        first.setdefault(where.split("/")[1], where)
    return ", ".join(where.removeprefix("/") for where in first.values())
