"""The Hub: models fetched from it and pushed to it, and the card that goes with them."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumonia_hf.errors import UserError
from pneumonia_hf.rows import describe_patients

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

RUN_FILE = "run.json"  # how the model was made
REPORTS_FILE = "reports.json"  # what it measured on data that it had not seen
CARD_FILE = "README.md"
CURVES_FILE = "training_curves.png"
ENSEMBLE_FILE = "ensemble.json"  # in the folder of several models
CODE_FILE = "xray_cnn.py"  # of the family that transformers does not know
CARD_TEMPLATE = Path(__file__).with_name("model_card.md")
# All that a model folder holds, and all that is pushed: never checkpoints or logs.
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    RUN_FILE,
    REPORTS_FILE,
    CARD_FILE,
    CURVES_FILE,
    CODE_FILE,
)
NOT_IN_EACH = {REPORTS_FILE, CURVES_FILE, CODE_FILE}
# The Hub's own names, where it has one.
HUB_METRICS = {"auroc": "roc_auc", "sensitivity": "recall", "brier": "brier_score"}
# With which a report shows that a model is badly calibrated: a p-value, and an error that matters.
MISFIT_P, MISFIT_ERROR = 0.01, 0.05
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def fetch_folder(
    path_or_id: str | Path,
    revision: str | None = None,
    what: str = "model",
    flag: str = "--model",
) -> Path:
    """Return the local folder of a model: itself, or its download from the Hub.

    Args:
        path_or_id: a folder, or a Hub id `owner/name` with an optional `@revision`.
        revision: a branch, tag or commit; wins over that in `path_or_id`.
        what, flag: how messages call it.

    Raises:
        UserError: neither a folder nor a Hub model that can be had.
    """
    text = str(path_or_id)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{text} is a file; {flag} takes a folder or a Hub id.")
    repo_id, _, at = text.partition("@")
    if not HUB_ID.match(repo_id) or text.startswith("."):
        raise UserError(f"The {what} folder {text} does not exist; check {flag}.")
    return _download(repo_id, revision or at or None, what, flag)


def _download(repo_id: str, revision: str | None, what: str, flag: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.md"]
        )
        if what == "weights" and not any(Path(folder).glob("*.safetensors")):
            # Older models have pickled tensors alone, which transformers reads as tensors only.
            folder = snapshot_download(
                repo_id, revision=revision, allow_patterns=["*.json", "pytorch_model.bin", "*.md"]
            )
        return Path(folder)
    except GatedRepoError as error:
        raise UserError(
            f"{repo_id} is gated; accept its terms on the Hub and log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"There is no folder {repo_id}, and the Hub has no such {what} for you; check {flag}, "
            f"or log in with `hf auth login` if it is private."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo_id} has no revision {revision!r} on the Hub; check {flag}.") from (
            error
        )
    except HFValidationError as error:
        raise UserError(f"The {what} folder {repo_id} does not exist; check {flag}.") from error
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise UserError(
                f"The Hub does not let you read {repo_id}; log in with `hf auth login`."
            ) from error
        if not is_connection_error(error):
            raise
        raise UserError(
            f"There is no folder {repo_id}, and the Hub cannot be reached to look for it there; "
            f"give {flag} a local folder, or check the network."
        ) from error


def explain_data_error(error: BaseException, name: str, revision: str | None) -> str:
    """Return the sentence for an error that the datasets library raised on opening a data set."""
    from datasets.exceptions import DatasetNotFoundError

    at = f" at revision {revision!r}" if revision else ""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if isinstance(error, DatasetNotFoundError):
        return (
            f"The Hub has no data set {name}{at} for you; check --data_dir, or log in with "
            f"`hf auth login` if it is private."
        )
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ConnectionError) or is_connection_error(chain):
            return f"{name} cannot be reached; check the network, or give --data_dir a folder."
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, FileNotFoundError):
        return f"{name}{at} is not there; check --data_dir."
    return f"{name}{at} cannot be read as a data set of pictures ({reason})."


def is_connection_error(error: BaseException | None) -> bool:
    """Return whether an error of huggingface_hub comes from a Hub out of reach."""
    import httpx2  # what this huggingface_hub speaks HTTP with
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    kinds = (httpx2.TransportError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    return isinstance(error, kinds)


def push_model(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Push a finished model folder to the Hub in one commit; return the commit's URL.

    Args:
        folder: as `train` makes it; only MODEL_FILES are sent.
        repo_id: `owner/name`; the repository is made if there is none.
        private: whether a repository that has to be made can be seen by its owner only.

    Raises:
        UserError: not a finished model, a card that the Hub refuses, no permission, no network.
    """
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id
    from yaml import YAMLError

    folder = Path(folder)
    check_finished(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is not a Hub id; give it as owner/name.") from error
    if "/" not in repo_id:
        raise UserError(f"{repo_id!r} is not a Hub id; give it as owner/name.")
    api = HfApi()
    try:
        # The Hub rejects a commit whose card is unsound: ask before anything is made there.
        ModelCard.load(folder / CARD_FILE).validate(repo_type="model")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(MODEL_FILES),
            # Else the numbers of an older model would stay beside new weights.
            delete_patterns=[name for name in MODEL_FILES if not (folder / name).exists()],
            commit_message="Add the model, its card and how it was made",
        )
    except LocalTokenNotFoundError as error:
        raise UserError("You are not logged in to the Hub; run `hf auth login` first.") from error
    except HfHubHTTPError as error:
        if is_connection_error(error):
            raise UserError("The Hub has a fault of its own just now; try again later.") from error
        status = error.response.status_code
        hint = {
            401: "run `hf auth login` with a token that may write",
            403: "use a token that may write there, or another --repo_id",
        }.get(status, "check --repo_id and your token")
        raise UserError(f"The Hub refused the push to {repo_id} ({status}); {hint}.") from error
    except (ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The model's card {folder / CARD_FILE} is unsound: {reason}") from error
    except Exception as error:
        if not is_connection_error(error):
            raise
        raise UserError("The Hub cannot be reached; check the network and try again.") from error
    return commit.commit_url


def check_finished(folder: Path) -> None:
    """Raise a UserError unless `folder` holds a model that `train` has finished."""
    if not folder.is_dir():
        raise UserError(f"The model folder {folder} does not exist; check --model.")
    if (folder / ENSEMBLE_FILE).exists():
        raise UserError(f"{folder} is an ensemble; give one of its members, one after the other.")
    for name in sorted(set(MODEL_FILES) - NOT_IN_EACH):
        if not (folder / name).exists():
            raise UserError(f"{folder} holds no finished model: {name} is missing.")


def read_json(path: Path, otherwise: Any) -> Any:
    """Return what a JSON file holds, or `otherwise` where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise
    except ValueError as error:  # also of bytes that are no UTF-8
        raise UserError(f"{path} is damaged and cannot be read as JSON; restore it.") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that people can read; NaN becomes null."""
    replace_text(path, json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: a full disk leaves what was there."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def add_report(folder: Path, report: dict[str, Any]) -> None:
    """Keep a report's numbers in the model folder, in place of older ones of the same data.

    Args:
        report: with `data`, `split`, `n`, `threshold` and `metrics`, as in report.json.
    """
    reports = read_json(folder / REPORTS_FILE, otherwise=[])
    key = (report["data"], report["split"])
    reports = [one for one in reports if (one["data"], one["split"]) != key]
    write_json(folder / REPORTS_FILE, [*reports, report])
    write_card(folder)


def write_card(folder: Path) -> None:
    """Write the model card from the folder's own run.json and reports.json."""
    replace_text(folder / CARD_FILE, str(make_card(folder)))


def make_card(folder: Path) -> ModelCard:
    """Return the model card: every number in it comes from the folder's files."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    run = read_json(folder / RUN_FILE, otherwise=None)
    reports = read_json(folder / REPORTS_FILE, otherwise=[])
    if run is None:
        raise UserError(f"{folder} holds no finished model: {RUN_FILE} is missing.")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", report["data"].lower()).strip("-") or "data",
            dataset_name=f"{report['data']} ({report['split']})",
            dataset_split=report["split"],
            metric_type=HUB_METRICS.get(name, name),
            metric_name=name,
            metric_value=round(metric["value"], 4),
        )
        for report in reports
        for name, metric in report["metrics"].items()
        if metric["value"] is not None
    ]
    data = ModelCardData(
        license=run["model"]["license"],
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["chest-x-ray", "pneumonia", "medical-imaging", "image-classification"],
        base_model=run["model"]["base_model"],
        metrics=["accuracy", "roc_auc", "f1", "precision", "recall"],
        model_name="pneumonia-hf",
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(CARD_TEMPLATE),
        run=run,
        reports=reports,
        percent=_to_text,
        count_patients=describe_patients,
        misfit=find_misfit(reports),
    )


def find_misfit(reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the external report that most shows the model to be badly calibrated, if one does.

    A report shows it where calibrated probabilities would fit its labels so badly once in a
    hundred times or less, and the error with both classes weighing a half is above 0.05: less is
    no matter, however many images show it.
    """
    bad = [
        one
        for one in reports
        if one.get("external")
        and (one.get("calibration_p") or 0) < MISFIT_P
        and one["metrics"]["ece_balanced"]["value"] > MISFIT_ERROR
    ]
    return max(bad, key=lambda one: one["metrics"]["ece_balanced"]["value"], default=None)


def _to_text(metric: dict[str, float | None]) -> str:
    if metric["value"] is None:
        return "not defined"
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"
