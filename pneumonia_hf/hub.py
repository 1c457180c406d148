"""The Hub: models fetched from it and pushed to it, and the card that goes with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pneumonia_hf.errors import UserError

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def fetch_folder(
    path_or_id: str | Path, revision: str | None = None, what: str = "model", flag: str = "--model"
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
    return f"{name}{at} cannot be read as a data set of images ({reason})."


def is_connection_error(error: BaseException | None) -> bool:
    """Return whether an error of huggingface_hub comes from a Hub out of reach."""
    import httpx2  # what this huggingface_hub speaks HTTP with
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    kinds = (httpx2.TransportError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    return isinstance(error, kinds)


def push_folder(
    folder: Path, repo_id: str, files: Sequence[str], card: str, private: bool = True
) -> str:
    """Push files of a folder to a model repository in one commit; return the commit's URL.

    Args:
        folder: where the files are.
        repo_id: `owner/name`; the repository is made if there is none.
        files: names of the files to send; those that the folder lacks are deleted there.
        card: name of the model card, which is validated first.
        private: whether a repository that has to be made can be seen by its owner only.

    Raises:
        UserError: a card that the Hub refuses, no permission, no network.
    """
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id
    from yaml import YAMLError

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is not a Hub id; give it as owner/name.") from error
    if "/" not in repo_id:
        raise UserError(f"{repo_id!r} is not a Hub id; give it as owner/name.")
    api = HfApi()
    try:
        # The Hub rejects a commit whose card is unsound: ask before anything is made there.
        ModelCard.load(folder / card).validate(repo_type="model")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(files),
            # Else the numbers of an older model would stay beside new weights.
            delete_patterns=[name for name in files if not (folder / name).exists()],
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
        raise UserError(f"The model's card {folder / card} is unsound: {reason}") from error
    except Exception as error:
        if not is_connection_error(error):
            raise
        raise UserError("The Hub cannot be reached; check the network and try again.") from error
    return commit.commit_url
