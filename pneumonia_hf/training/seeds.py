"""summarise_seeds: runs that differ in their seed -> their spread, and their ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf import __version__
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.perturbations import ROBUST
from pneumonia_hf.evaluation.recalibrate import list_hospitals, score_validation
from pneumonia_hf.files import replace_text, without_nan, write_json
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, check_model_folder
from pneumonia_hf.models.run_manifest import RunManifest, read_manifest
from pneumonia_hf.reporting.numbers import read_interval, to_text
from pneumonia_hf.reporting.page import Page, Section, Table, to_markdown
from pneumonia_hf.statistics.calibration import calibrate_scores
from pneumonia_hf.statistics.metrics import auroc

if TYPE_CHECKING:
    from datasets import Dataset

# Of METRICS, those that say something of their own, and that runs of earlier versions have.
SUMMARISED = (
    "accuracy", "sensitivity", "specificity", "precision", "f1", "auroc", "auprc", "brier", "ece",
    "brier_balanced", "ece_balanced",
)  # fmt: skip
SEEDS_FILE, SEEDS_TABLE = "seeds.json", "seeds.md"


def summarise_seeds(
    folder: Path,
    members: Sequence[Path],
    validation: Dataset,
    required_sensitivity: float | None = None,
    **resamples: int,
) -> dict[str, Any]:
    """Write the spread of runs with several seeds, and make an ensemble of them.

    The ensemble is scored on the raw validation images, as `Predictor` serves it. Its temperature
    and operating point are chosen on them, as for a single model.

    Args:
        folder: gets `seeds.json`, `seeds.md` and `ensemble.json`, which makes it a model for
            `Predictor.from_pretrained`.
        members: saved model folders inside `folder`.
        validation: the validation split; images that the members could not read are left out.
        required_sensitivity, resamples: for `calibrate_scores`.

    Returns:
        What `seeds.json` holds: `seeds`, a list with `member`, `seed`, the value of each metric,
        the threshold and, if the copies chose the checkpoints, `robust_auroc`; `spread`, the
        `mean`, `sd` (n - 1 in the denominator), `low` and `high` of each over the seeds;
        `ensemble`, what `ensemble.json` holds.

    Raises:
        UserError: no members; one that is incomplete, lies elsewhere or was chosen on other images.
    """
    folder = Path(folder)
    if not members:
        raise UserError("No members to make an ensemble of; give one seed or more.")
    names = [_name_in(folder, Path(member)) for member in members]
    for name in names:
        check_model_folder(folder / name)
    manifests = {name: read_manifest(folder / name) for name in names}
    validation = _select_common(manifests, validation)
    with_copies = all(
        manifest.training.metric_for_best_model == ROBUST for manifest in manifests.values()
    )
    seeds = [_summarise_run(name, manifests[name], with_copies) for name in names]
    predictor = Predictor.from_pretrained([folder / name for name in names])
    labels = validation["label"][:]
    scores, _ = score_validation(predictor, validation, with_copies)
    # A temperature of its own: members that err on different images should be less sure together.
    found = calibrate_scores(
        labels,
        scores,
        validation["patient"][:],
        required_sensitivity,
        **resamples,
        **list_hospitals(validation),
    )
    ensemble = {"members": names, **found.settings, **found.remarks, "metrics": found.metrics}
    ensemble["hospitals"] = found.hospitals
    ensemble["version"] = __version__
    if with_copies:
        areas = [auroc(np.asarray(labels), kind, 0) for kind in scores]
        ensemble["metrics"][ROBUST] = {"value": float(np.mean(areas)), "low": None, "high": None}
    columns = [name for name in seeds[0] if name not in ("member", "seed")]
    spread = {key: _spread([seed[key] for seed in seeds]) for key in columns}
    summary = without_nan({"seeds": seeds, "spread": spread, "ensemble": ensemble})
    # ensemble.json comes last: it makes the folder a model.
    replace_text(folder / SEEDS_TABLE, _to_markdown(summary))
    write_json(folder / SEEDS_FILE, summary)
    write_json(folder / ENSEMBLE_FILE, summary["ensemble"])
    return summary


def _summarise_run(name: str, manifest: RunManifest, with_copies: bool) -> dict[str, Any]:
    found = manifest.validation
    values = {metric: found.metrics[metric]["value"] for metric in SUMMARISED}
    if with_copies:
        values[ROBUST] = float(np.mean([values["auroc"], *found.copies_auroc.values()]))
    seed = {"member": name, "seed": manifest.training.seed}
    return seed | values | {"threshold": found.threshold}


def _name_in(folder: Path, member: Path) -> str:
    try:
        return member.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError as error:
        raise UserError(f"{member} does not lie in {folder}, as members must.") from error


def _select_common(manifests: dict[str, RunManifest], validation: Dataset) -> Dataset:
    """Return the images of `validation` that all runs were chosen on.

    Members may have been trained on others, which would bias the ensemble optimistically.
    """
    chosen_on = {name: of.hashes.get("validation", frozenset()) for name, of in manifests.items()}
    first, common = next(iter(chosen_on.items()))
    hashes = to_hex(hash_images(validation))
    for name, own in chosen_on.items():
        if own != common:
            raise UserError(
                f"{first} and {name} were chosen on different validation images; "
                f"train all seeds on the same data with the same --split_seed."
            )
    if not common or not common <= set(hashes):
        raise UserError(
            f"{first} was chosen on other validation images than those given now; "
            f"train it again on this data."
        )
    return validation.select([row for row, digest in enumerate(hashes) if digest in common])


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return mean, standard deviation and range; None where a value is missing."""
    if None in values:
        return dict.fromkeys(("mean", "sd", "low", "high"))
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "low": min(values),
        "high": max(values),
    }


def _to_markdown(summary: dict[str, Any]) -> str:
    seeds, spread, ensemble = summary["seeds"], summary["spread"], summary["ensemble"]
    metrics = ensemble["metrics"]
    rows = [(f"seed {one['seed']} (`{one['member']}`)", one) for one in seeds]
    for key, title in (
        ("mean", "mean"),
        ("sd", "standard deviation"),
        ("low", "lowest"),
        ("high", "highest"),
    ):
        rows.append((title, {name: of_name[key] for name, of_name in spread.items()}))
    of_ensemble = {name: interval["value"] for name, interval in metrics.items()}
    rows.append(("**ensemble**", of_ensemble | {"threshold": ensemble["threshold"]}))
    cells = [[title, *(_to_text(values[name]) for name in spread)] for title, values in rows]
    temperature = f"{ensemble['temperature']:.3f}"
    area = to_text(read_interval(metrics["auroc"]))
    body = (
        "All numbers are of the validation split, on which checkpoints, temperatures and "
        "thresholds were chosen: they are optimistically biased. Each row is at its own "
        "threshold. The standard deviation is that of the seeds, on one split: it measures how "
        "much training varies, not how much patients do.",
        Table(["", *spread], cells),
        f"The log odds of the ensemble are the mean of its members', divided by a temperature of "
        f"{temperature}. Its AUROC over patients is {area}.",
    )
    return to_markdown(Page(f"{len(seeds)} seeds", [Section("", body)]))


def _to_text(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.4f}"
