"""choose_own_threshold: a model's threshold for another hospital, from some labelled images."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import count_seen
from pneumonia_hf.evaluation.scores import score_images
from pneumonia_hf.files import read_json, write_json
from pneumonia_hf.inference.network import CONFIG_KEY
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.model_card import write_card
from pneumonia_hf.models.model_folder import (
    CARD_FILE,
    MODEL_FILES,
    REPORTS_FILE,
    RUN_FILE,
    check_model_folder,
)
from pneumonia_hf.models.run_manifest import read_manifest
from pneumonia_hf.reporting.numbers import read_interval, to_text
from pneumonia_hf.statistics.hospitals import rates_at
from pneumonia_hf.statistics.intervals import draw_patients
from pneumonia_hf.statistics.metrics import bootstrap_intervals
from pneumonia_hf.statistics.thresholds import RATES, choose_threshold, measure_left_out

FEWEST_IMAGES = 20  # of each class
RESAMPLES = 300


def choose_own_threshold(
    folder: Path,
    source: str,
    positive_label: str | Sequence[str] = LABELS[1],
    output: Path | None = None,
) -> dict[str, Any]:
    """Give a saved model the threshold and REFER range of a data source, and rewrite its card.

    Weights, temperature and input gate stay. Reports in the folder are removed, since they were
    measured at the old threshold. With `output`, a new folder, the model is copied there.

    Returns:
        What `run.json` then holds as `own_threshold`: `data`, its name; `images`, `patients` and
        the number of each class; `seen`, images of the model's own splits; `before` and `config`,
        threshold and range; `rates` on these images at the `old` and the `new` threshold, with
        the share in its range; `left_out`, as of `measure_left_out`; `validation`, the rates of
        each of the model's own hospitals at both.

    Raises:
        UserError: not a saved model; fewer than FEWEST_IMAGES of a class; `output` exists.
    """
    from datasets import concatenate_datasets

    check_model_folder(folder)
    if output and output.exists():
        raise UserError(f"{output} exists; choose another --output_dir.")
    name = parse_source(source).name
    data = concatenate_datasets(list(load_splits([source]).values()))
    predictor = Predictor.from_pretrained(folder, positive_label=positive_label)
    scores = score_images(predictor, data, name)
    counts = np.bincount(scores.labels, minlength=2).tolist()
    if min(counts) < FEWEST_IMAGES:
        raise UserError(
            f"{name} has {counts[0]} {LABELS[0]} and {counts[1]} {LABELS[1]} images; a threshold "
            f"needs {FEWEST_IMAGES} of each class."
        )
    images = scores.labels, scores.probabilities
    config = read_json(folder / "config.json", otherwise={})
    old = config[CONFIG_KEY]
    required = old.get("required_sensitivity")
    point = choose_threshold(*images, scores.patients, required)
    new = {"threshold": point.threshold, "refer_low": point.low, "refer_high": point.high}
    manifest = read_manifest(folder)
    run, hospitals = manifest.content, manifest.validation.hospitals
    draws = list(draw_patients(scores.labels, scores.patients, RESAMPLES))

    def measure(at: dict[str, float]) -> dict[str, Any]:
        found = bootstrap_intervals(*images, at["threshold"], scores.patients, draws, RATES)
        in_range = (images[1] >= at["refer_low"]) & (images[1] < at["refer_high"])
        return {rate: asdict(one) for rate, one in found.items()} | {
            "in_range": float(np.mean(in_range))
        }

    found = {
        "data": name,
        "images": len(scores.labels),
        "patients": len(set(scores.patients)),
        **dict(zip(LABELS, counts, strict=True)),
        "seen": sum(count_seen(predictor, scores.rows).values()),
        "before": {key: old[key] for key in new},
        "config": new,
        "rates": {"old": measure(old), "new": measure(new)},
        "left_out": measure_left_out(*images, draws, required),
        "validation": {
            hospital: {
                at: rates_at(of["log_odds"], threshold)
                for at, threshold in (("old", old["threshold"]), ("new", point.threshold))
            }
            for hospital, of in hospitals.items()
            if "log_odds" in of
        },
    }
    run["own_threshold"], config[CONFIG_KEY] = found, old | new
    _save(folder, output or folder, run, config)
    return found


def _save(folder: Path, output: Path, run: dict[str, Any], config: dict[str, Any]) -> None:
    """Write the changed files; config.json, which decides, comes before the card alone."""
    if output != folder:
        output.mkdir(parents=True)
        for name in set(MODEL_FILES) - {"config.json", RUN_FILE, REPORTS_FILE, CARD_FILE}:
            if (folder / name).exists():
                shutil.copy2(folder / name, output)
    (output / REPORTS_FILE).unlink(missing_ok=True)
    write_json(output / RUN_FILE, run)
    write_json(output / "config.json", config)
    write_card(output)


def describe_own_threshold(found: dict[str, Any]) -> str:
    """Return in a few lines what `choose_own_threshold` found."""
    ranges = {
        at: f"{of['threshold']:.4f} ({of['refer_low']:.4f} to {of['refer_high']:.4f})"
        for at, of in (("old", found["before"]), ("new", found["config"]))
    }
    rates = {
        at: ", ".join(f"{rate} {to_text(read_interval(of[rate]))}" for rate in RATES)
        + f"; {of['in_range']:.0%} in its range are referred"
        for at, of in found["rates"].items()
    }
    left_out = ", ".join(f"{rate} {found['left_out'][rate]:.2f}" for rate in RATES)
    lines = [
        f"{found['images']} images of {found['patients']} patients of {found['data']}.",
        f"Old threshold {ranges['old']}: here {rates['old']}.",
        f"New threshold {ranges['new']}: here {rates['new']}.",
        f"The latter are optimistically biased, since the threshold was chosen on these images; on "
        f"patients left out of the choice (bootstrap): {left_out}.",
    ]
    if found["seen"]:
        lines.append(f"{found['seen']} of the images are of the model's own data: use others.")
    for name, of in found["validation"].items():
        both = (", ".join(f"{rate} {of[at][rate]:.2f}" for rate in RATES) for at in ("old", "new"))
        lines.append(f"On the validation images of {name}: {' -> '.join(both)}.")
    return "\n".join(lines)
