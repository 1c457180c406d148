"""Download models from the Hub and push them, with one sentence for each Hub error."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pneumonia_hf.errors import HubError, ModelError, UserError

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

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
        # An ensemble has its members in folders; those of `push` that are not loaded stay there.
        download = partial(
            snapshot_download, repo_id, revision=revision, ignore_patterns=["onnx/*", "report/*"]
        )
        folder = Path(download(allow_patterns=["*.json", "*.safetensors", "*.md"]))
        if not (find_weights(folder) or any(folder.glob("*/*.safetensors"))):
            # Older models have pickled weights only; transformers unpickles only tensors.
            folder = Path(download(allow_patterns=["*.json", "*pytorch_model*.bin", "*.md"]))
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


def find_dataset_commit(name: str, revision: str | None) -> str:
    """Return the commit of a dataset on the Hub.

    Raises:
        UserError: no such dataset or revision, or an unreachable Hub.
    """
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except Exception as error:  # of the Hub and of the network
        raise UserError(explain_data_error(error, name, revision)) from error


def explain_data_error(error: BaseException, name: str, revision: str | None) -> str:
    """Return the sentence for an error of the datasets library when it opens a dataset."""
    from datasets.exceptions import DatasetNotFoundError

    at = f" at revision {revision!r}" if revision else ""
    if isinstance(error, DatasetNotFoundError):
        return f"The Hub has no dataset {name}{at} or it is private; check --data_dir, or {LOG_IN}."
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ConnectionError) or is_connection_error(chain):
            return f"{name} cannot be reached; check the network, or give a folder."
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


@dataclass(frozen=True)
class Pushed:
    """What a push has left on the Hub."""

    url: str  # of the commit
    revision: str  # its full id
    is_new: bool  # False: the content was there already, and no commit was made
    is_private: bool


def push_files(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    message: str,
    is_ours: Callable[[str, Collection[str]], bool],
    private: bool = True,
    tag: str | None = None,
    kind: Literal["model", "space"] = "model",
) -> Pushed:
    """Make `files` the content of a repository, in one commit; without a difference, in none.

    Args:
        repo_id: `owner/name`; it is created if it does not exist, `private` or public.
        files: paths in the repository and their content; README.md, the card, must be bytes. It
            keeps the names of public data sets only.
        message: of the commit.
        is_ours: whether a path, of all those in the repository, is of an earlier push; it is
            deleted if it is not in `files`. Other files stay.
        tag: names the revision, if given.
        kind: of the repository.

    Raises:
        ModelError: an invalid card.
        HubError: no permission, no network, a tag that names another revision.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard

    check_repo_id(repo_id)
    api = HfApi()
    with explain_push_errors(repo_id):
        # The Hub rejects a commit with an invalid card: validate before creating anything.
        card = RepoCard(files["README.md"].decode())
        if datasets := card.data.get("datasets"):
            is_public = partial(api.repo_exists, repo_type="dataset", token=False)
            card.data.datasets = list(filter(is_public, datasets)) or None
            files = {**files, "README.md": str(card).encode()}
        card.validate(repo_type=kind)
        sdk = "gradio" if kind == "space" else None
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)
        before = api.repo_info(repo_id, repo_type=kind)
        tags = api.list_repo_refs(repo_id, repo_type=kind).tags if tag else []
        tagged = next((one.target_commit for one in tags if one.name == tag), None)
        if tagged not in (None, before.sha):
            raise HubError(f"{repo_id} has a tag {tag} of an older revision; choose another --tag.")
        there = {one.rfilename for one in before.siblings}
        gone = sorted(name for name in there - files.keys() if is_ours(name, there))
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()]
            + [CommitOperationDelete(name) for name in gone],
            commit_message=message,
            repo_type=kind,
        )
        is_new = commit.oid != before.sha
        if tagged and is_new:
            raise HubError(
                f"{repo_id} has a new revision now, but its tag {tag} stays at the one before; "
                f"push again with another --tag."
            )
        if tag:
            api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type=kind, exist_ok=True)
    return Pushed(commit.commit_url, commit.oid, is_new, bool(before.private))


def find_model(path_or_id: str) -> ModelInfo:
    """Return what the Hub knows of `owner/name[@revision]`; raise a UserError for no such model."""
    from huggingface_hub import HfApi

    repo_id, _, revision = to_hub_id(path_or_id).partition("@")
    if Path(repo_id).expanduser().exists() or not HUB_ID.match(repo_id):
        raise ModelError(f"{path_or_id} is not on the Hub; push it first, and name it as --model.")
    try:
        return HfApi().model_info(repo_id, revision=revision or None)
    except Exception as error:
        if reason := _explain_download_error(error, repo_id, revision, "model", "--model"):
            raise HubError(reason) from error
        raise


def set_variables(repo_id: str, wanted: Mapping[str, str]) -> None:
    """Set those variables of a Space that have another value; a change restarts it."""
    from huggingface_hub import HfApi

    api = HfApi()
    with explain_push_errors(repo_id):
        there = api.get_space_variables(repo_id)
        for key, value in wanted.items():
            if key not in there or there[key].value != value:
                api.add_space_variable(repo_id, key, value)


def find_space_address(repo_id: str) -> str:
    """Return the address at which a Space runs; raise a HubError if it does not."""
    from huggingface_hub import HfApi

    check_repo_id(repo_id)
    with explain_push_errors(repo_id):
        found = HfApi().space_info(repo_id)
    stage = found.runtime.stage if found.runtime else "unknown"
    if stage not in ("RUNNING", "SLEEPING") or not found.host:
        raise HubError(f"The Space {repo_id} does not run (its stage is {stage}).")
    return found.host


def check_repo_id(repo_id: str) -> None:
    """Raise a HubError unless `repo_id` is `owner/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            raise HFValidationError(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is not a Hub id; give it as owner/name.") from error


def check_login(repo_id: str) -> None:
    """Raise a HubError unless the Hub can be reached, and knows the user who would push there."""
    from huggingface_hub import HfApi

    with explain_push_errors(repo_id):
        HfApi().whoami()


@contextmanager
def explain_push_errors(repo_id: str) -> Iterator[None]:
    """Raise the errors of what writes to a repository as a HubError or ModelError."""
    try:
        yield
    except Exception as error:
        # A file that is uploaded in a thread raises a RuntimeError from its own error.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if (reason := _explain_push_error(cause, repo_id)) is None:
            raise
        raise reason from error


def _explain_push_error(error: BaseException, repo_id: str) -> UserError | None:
    """Return what to say of an error of huggingface_hub, or None for other errors."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from yaml import YAMLError

    if isinstance(error, UserError):
        return None
    if isinstance(error, LocalTokenNotFoundError):
        return HubError("You are not logged in to the Hub; run `hf auth login` first.")
    if isinstance(error, HfHubHTTPError):
        if is_connection_error(error):
            return HubError("The Hub has an internal error; try again later.")
        status = error.response.status_code
        hint = {
            401: "run `hf auth login` with a token that has write access",
            403: "use a token with write access to it, or another --repo_id",
        }.get(status, "check --repo_id and your token")
        return HubError(f"The Hub refused {repo_id} ({status}); {hint}.")
    if isinstance(error, ValueError | YAMLError):
        reason = " ".join(str(error).split())
        return ModelError(f"The card for {repo_id} is invalid: {reason}")
    if is_connection_error(error):
        return HubError("The Hub cannot be reached; check the network and try again.")
    return None
