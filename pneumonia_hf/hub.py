"""Download models from the Hub and push them, with one sentence for each Hub error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pneumonia_hf.errors import HubError, ModelError

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
ADDRESSES = ("https://", "http://", "hf://", "huggingface.co/", "hf.co/")
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def fetch_folder(
    path_or_id: str | Path, revision: str | None = None, what: str = "model", flag: str = "--model"
) -> Path:
    """Return a local model folder, or download a Hub id `owner/name` with optional `@revision`.

    `revision` (a branch, tag or commit) overrides that of the id. `what` and `flag` are for
    error messages.

    Raises:
        ModelError: neither a folder nor the name of a model.
        HubError: no accessible model on the Hub.
    """
    text = str(path_or_id)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{text} is a file; {flag} takes a folder or a Hub id.")
    repo_id, _, at = text.partition("@")
    if not HUB_ID.match(repo_id) or text.startswith("."):
        raise ModelError(f"The {what} folder {text} does not exist; check {flag}.")
    revision = revision or at or None
    from huggingface_hub import snapshot_download

    try:
        files = ["*.json", "*.safetensors", "*.md"]
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=files))
        if not find_weights(folder):
            # Older models have pickled weights only; transformers unpickles only tensors.
            files = ["*.json", "*pytorch_model*.bin", "*.md"]
            folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=files))
    except Exception as error:
        if reason := _explain_download_error(error, repo_id, revision, what, flag):
            raise HubError(reason) from error
        raise
    return folder


def find_file(path_or_id: str, name: str) -> Path | None:
    """Return a file of a model folder, or of a Hub id as `fetch_folder` has downloaded it.

    The network is not asked; None if there is no such file.
    """
    from huggingface_hub import try_to_load_from_cache

    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).exists() else None
    repo_id, _, revision = path_or_id.partition("@")
    if not HUB_ID.match(repo_id):
        return None
    found = try_to_load_from_cache(repo_id, name, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def public_name(path_or_id: str) -> str:
    """Return the name of a local file or folder, whose path is private; a Hub id as it is."""
    path = Path(path_or_id).expanduser()
    if HUB_ID.match(path_or_id.partition("@")[0]) and not path.exists():
        return path_or_id
    return path.resolve().name


def to_hub_id(text: str, flag: str = "--model") -> str:
    """Return the address of a model's page as `owner/name[@revision]`, and other text as it is.

    Raises:
        ModelError: the address of something else. `flag` is for the message.
    """
    if not text.strip().startswith(ADDRESSES):
        return text
    from huggingface_hub import parse_hf_uri

    try:
        found = parse_hf_uri(text.strip())
    except ValueError:
        found = None
    if found is None or found.type != "model":
        raise ModelError(
            f"{text.strip()} is not the address of a model of the Hub; check {flag}: it takes "
            f"owner/name too."
        )
    return f"{found.id}@{found.revision}" if found.revision else found.id


def find_weights(folder: Path) -> list[Path]:
    """Return the files of the weights that transformers loads from a folder, if any."""
    names = ("model", "model-*-of-*"), ("pytorch_model", "pytorch_model-*-of-*")
    for suffix, kinds in zip(("safetensors", "bin"), names, strict=True):
        for name in kinds:
            if files := sorted(folder.glob(f"{name}.{suffix}")):
                return files
    return []


def _explain_download_error(
    error: Exception, repo_id: str, revision: str | None, what: str, flag: str
) -> str | None:
    """Return the sentence for an error of huggingface_hub, or None for other errors."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated; accept its terms on the Hub and {LOG_IN}."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no folder {repo_id}, and the Hub has no such {what} or it is private; "
            f"check {flag}, or {LOG_IN}."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r} on the Hub; check {flag}."
    if isinstance(error, HFValidationError):
        return f"The {what} folder {repo_id} does not exist; check {flag}."
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"You have no access to {repo_id} on the Hub; {LOG_IN}."
    if is_connection_error(error):
        return (
            f"There is no folder {repo_id}, and the Hub cannot be reached; "
            f"give {flag} a local folder, or check the network."
        )
    return None


def explain_data_error(error: BaseException, name: str, revision: str | None) -> str:
    """Return the sentence for an error of the datasets library when it opens a dataset."""
    from datasets.exceptions import DatasetNotFoundError

    at = f" at revision {revision!r}" if revision else ""
    if isinstance(error, DatasetNotFoundError):
        return f"The Hub has no dataset {name}{at} or it is private; check --data_dir, or {LOG_IN}."
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ConnectionError) or is_connection_error(chain):
            return f"{name} cannot be reached; check the network, or give --data_dir a folder."
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, FileNotFoundError):
        return f"{name}{at} does not exist; check --data_dir."
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{name}{at} cannot be read as a dataset of images ({reason})."


def is_connection_error(error: BaseException) -> bool:
    """Return whether an error means that the Hub is out of reach."""
    import httpx2  # the HTTP client of this huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    types = (httpx2.TransportError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    return isinstance(error, types)


def push_folder(
    folder: Path, repo_id: str, files: Sequence[str], card: str, private: bool = True
) -> str:
    """Push files of a folder to a model repository in one commit; return the commit's URL.

    The repository `owner/name` is created if it does not exist, `private` or public. Of `files`,
    those missing in `folder` are deleted on the Hub. The model `card` is validated first.

    Raises:
        ModelError: an invalid card.
        HubError: no permission, no network.
    """
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id
    from yaml import YAMLError

    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            raise HFValidationError(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is not a Hub id; give it as owner/name.") from error
    api = HfApi()
    try:
        # The Hub rejects a commit with an invalid card: validate before creating anything.
        ModelCard.load(folder / card).validate(repo_type="model")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(files),
            # Otherwise the reports of an older model would stay beside new weights.
            delete_patterns=[name for name in files if not (folder / name).exists()],
            commit_message="Add the model, its card and how it was made",
        )
    except LocalTokenNotFoundError as error:
        raise HubError("You are not logged in to the Hub; run `hf auth login` first.") from error
    except HfHubHTTPError as error:
        if is_connection_error(error):
            raise HubError("The Hub has an internal error; try again later.") from error
        status = error.response.status_code
        hint = {
            401: "run `hf auth login` with a token that has write access",
            403: "use a token with write access to it, or another --repo_id",
        }.get(status, "check --repo_id and your token")
        raise HubError(f"The Hub refused the push to {repo_id} ({status}); {hint}.") from error
    except (ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"The model card {folder / card} is invalid: {reason}") from error
    except Exception as error:
        if not is_connection_error(error):
            raise
        raise HubError("The Hub cannot be reached; check the network and try again.") from error
    return commit.commit_url
