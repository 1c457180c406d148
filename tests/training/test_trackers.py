"""Trackers: a run reports to files on this machine, and sends nothing."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT, save_tiny_body

# Runs a script and records its network connections and the browsers that it opens.
WATCHED = """
import runpy, sys

log = open(sys.argv[1], "w", buffering=1)

def watch(event, arguments):
    if event == "webbrowser.open":
        log.write(f"{event} {arguments}\\n")
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        address = arguments[1]
        if isinstance(address, tuple) and address[1]:  # port 0 only tries whether IPv6 is there
            log.write(f"{event} {address}\\n")

sys.addaudithook(watch)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save_tiny_body("xray-cnn", tmp_path_factory.mktemp("body"))


def train_tracked(tracker, body, data, output, *flags, **environment) -> tuple[str, list[str]]:
    """Train in two phases; return the output, and the network calls."""
    calls = output.with_suffix(".calls")
    arguments = [
        *("--backbone", "xray-cnn", "--weights", body, "--image_size", 64),
        *("--data_dir", data, "--output_dir", output, "--precision", "fp32", "--cpu_threads", 1),
        *("--phases", "head:1:1e-2", "all:2:1e-2", "--logging_steps", 2, "--disable_tqdm", "true"),
        *("--bootstrap_resamples", 20, "--threshold_resamples", 50, "--attribution_images", 1),
        *("--report_to", tracker, *flags),
    ]
    script = ROOT / "train_scripts" / "train.py"
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *map(str, [calls, script, *arguments])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"HF_TOKEN": "", "HF_HOME": str(output.parent / "hf")} | environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, calls.read_text().splitlines()


def read_logs(output) -> list[list[dict]]:
    """Return the Trainer's log of each phase."""
    outcomes = sorted((output / "checkpoints").glob("phase-*/outcome.json"))
    return [json.loads(outcome.read_text())["log"] for outcome in outcomes]


def points_of(log, key) -> dict[int, float]:
    return {entry["step"]: entry[key] for entry in log if key in entry}


@pytest.mark.slow
def test_tensorboard_has_the_losses_and_metrics_of_every_phase(body, xray_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    _, calls = train_tracked("tensorboard", body, xray_folder, output)
    assert calls == []
    logs = read_logs(output)
    assert len(logs) == 2
    for number, log in enumerate(logs, start=1):
        (events,) = (output / "checkpoints" / f"phase-{number}").rglob("events.out.tfevents.*")
        summary = EventAccumulator(str(events)).Reload()
        for ours, theirs in (
            ("loss", "train/loss"),
            ("learning_rate", "train/learning_rate"),
            ("eval_loss", "eval/loss"),
            ("eval_auroc", "eval/auroc"),
            ("eval_ece", "eval/ece"),
        ):
            expected = points_of(log, ours)
            assert len(expected) >= number
            found = {event.step: event.value for event in summary.Scalars(theirs)}
            assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_trackio_keeps_every_phase_in_its_folder_and_connects_to_nothing(
    body, xray_folder, tmp_path
):
    import sqlite3
    from contextlib import closing

    output, kept = tmp_path / "run", tmp_path / "trackio"
    printed, calls = train_tracked("trackio", body, xray_folder, output, TRACKIO_DIR=str(kept))
    assert calls == []
    with closing(sqlite3.connect(kept / "pneumonia-hf.db")) as database:
        rows = database.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    by_run: dict[str, list[dict]] = {}
    for run, metrics in rows:
        by_run.setdefault(run, []).append(json.loads(metrics))
    logs = read_logs(output)
    assert len(by_run) == len(logs) == 2
    for number, (run, log) in enumerate(zip(sorted(by_run), logs, strict=True), start=1):
        assert re.fullmatch(rf"run-[0-9a-f]{{6}}-phase-{number}", run)
        assert run in printed
        for ours, theirs in (
            ("loss", "train/loss"),
            ("eval_loss", "eval/loss"),
            ("eval_auroc", "eval/auroc"),
            ("eval_sensitivity", "eval/sensitivity"),
        ):
            found = {
                entry["train/global_step"]: entry[theirs]
                for entry in by_run[run]
                if theirs in entry
            }
            expected = points_of(log, ours)
            assert len(expected) >= number
            assert found == expected
