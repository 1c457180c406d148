"""summarise_seeds: runs that differ by their seed -> how far they scatter, and their ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf import __version__
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.sources import open_images
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.calibration import calibrate_scores
from pneumonia_hf.evaluation.metrics import METRICS
from pneumonia_hf.files import read_json, replace_text, write_json
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, RUN_FILE, check_model_folder

if TYPE_CHECKING:
    from datasets import Dataset

SEEDS_FILE, SEEDS_TABLE = "seeds.json", "seeds.md"
COLUMNS = (*METRICS, "threshold")


def summarise_seeds(
    folder: Path,
    members: Sequence[Path],
    validation: Dataset,
    required_sensitivity: float | None = None,
) -> dict[str, Any]:
    """Write how far the runs of several seeds scatter, and make an ensemble of them.

    The ensemble is scored on the raw validation images, as `Predictor` serves it; its
    temperature and its operating point come from them, as those of a single model do.

    Args:
        folder: gets `seeds.json`, `seeds.md` and `ensemble.json`, by which it is a model to
            `Predictor.from_pretrained`.
        members: saved model folders inside `folder`.
        validation: the validation split that all of them were chosen on; of its images, those
            that they could not read are passed over.
        required_sensitivity: as for a single model.

    Returns:
        What `seeds.json` holds: `seeds`, a list with `member`, `seed` and the value of each metric
        and of the threshold; `spread`, the `mean`, `sd` (n - 1 in the denominator), `low` and
        `high` of each over the seeds; `ensemble`, what `ensemble.json` holds.

    Raises:
        UserError: no members, one that is not finished or lies elsewhere, or one that was chosen
            on other images.
    """
    folder = Path(folder)
    if not members:
        raise UserError("No members to make an ensemble of; give one seed or more.")
    names = [_name_in(folder, Path(member)) for member in members]
    runs = [_read_run(folder / name) for name in names]
    validation = _select_common(names, runs, validation)
    seeds = [
        {
            "member": name,
            "seed": run["training"]["seed"],
            **{metric: run["validation"]["metrics"][metric]["value"] for metric in METRICS},
            "threshold": run["validation"]["config"]["threshold"],
        }
        for name, run in zip(names, runs, strict=True)
    ]
    ensemble = {"members": names} | _calibrate(
        [folder / name for name in names], validation, required_sensitivity
    )
    ensemble["version"] = __version__
    summary = {
        "seeds": seeds,
        "spread": {key: _spread([one[key] for one in seeds]) for key in COLUMNS},
        "ensemble": ensemble,
    }
    # The table first: what makes the folder a model comes last.
    replace_text(folder / SEEDS_TABLE, _to_markdown(summary))
    write_json(folder / SEEDS_FILE, summary)
    write_json(folder / ENSEMBLE_FILE, ensemble)
    return summary


def _name_in(folder: Path, member: Path) -> str:
    try:
        return member.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError as error:
        raise UserError(
            f"{member} does not lie in {folder}; the members of an ensemble must."
        ) from error


def _read_run(member: Path) -> dict[str, Any]:
    check_model_folder(member)
    return read_json(member / RUN_FILE, otherwise={})


def _select_common(
    names: Sequence[str], runs: Sequence[dict[str, Any]], validation: Dataset
) -> Dataset:
    """Return the images of `validation` that all runs kept apart to choose on.

    Of others, some member may have been trained on: the ensemble would flatter itself.
    """
    common = set(runs[0]["hashes"]["validation"])
    hashes = to_hex(hash_images(validation))
    for name, run in zip(names, runs, strict=True):
        if set(run["hashes"]["validation"]) != common:
            raise UserError(
                f"{names[0]} and {name} were chosen on different validation images; "
                f"train all seeds on the same data with the same --split_seed."
            )
    if not common <= set(hashes):
        raise UserError(
            f"{names[0]} was chosen on other validation images than those given now; "
            f"train it again on this data."
        )
    return validation.select([row for row, one in enumerate(hashes) if one in common])


def _calibrate(
    members: Sequence[Path], validation: Dataset, required_sensitivity: float | None
) -> dict[str, Any]:
    """Return the temperature and operating point of an ensemble, and what it scores with them."""
    labels, patients = validation["label"][:], validation["patient"][:]
    predictor = Predictor.from_pretrained(members)
    log_odds = predictor.log_odds_of_images(open_images(validation))
    # Members that err on different images are less sure together than each should be.
    found = calibrate_scores(labels, log_odds, patients, required_sensitivity)
    return found.settings | found.remarks | {"metrics": found.metrics}


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return mean, standard deviation and range; None where a value or a second one is missing."""
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
    of_ensemble = {name: interval["value"] for name, interval in metrics.items()}
    of_ensemble["threshold"] = ensemble["threshold"]
    rows = [(f"seed {one['seed']} (`{one['member']}`)", one) for one in seeds]
    rows += [
        (title, {name: of_name[key] for name, of_name in spread.items()})
        for title, key in (
            ("mean", "mean"),
            ("standard deviation", "sd"),
            ("lowest", "low"),
            ("highest", "high"),
        )
    ]
    rows.append(("**ensemble**", of_ensemble))
    auroc = metrics["auroc"]
    return "\n".join(
        [
            f"# {len(seeds)} seeds",
            "",
            "Research software, not a medical device.",
            "",
            "All numbers are of the validation split, on which checkpoints, temperatures and "
            "thresholds were chosen: they flatter. Each row is at its own threshold. The "
            "standard deviation is that of the seeds, over one and the same split: it says how "
            "far training scatters, and nothing of other patients.",
            "",
            f"| | {' | '.join(COLUMNS)} |",
            f"|---|{'---|' * len(COLUMNS)}",
            *(
                f"| {title} | {' | '.join(_to_text(values[name]) for name in COLUMNS)} |"
                for title, values in rows
            ),
            "",
            "The log odds of the ensemble are the mean of its members', divided by a temperature "
            f"of {ensemble['temperature']:.3f}. The 95% bootstrap interval of its AUROC over "
            f"patients is {_to_text(auroc['low'])} to {_to_text(auroc['high'])}.",
            "",
        ]
    )


def _to_text(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.4f}"
