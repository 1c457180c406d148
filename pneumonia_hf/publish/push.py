"""push_model: what of a saved model or ensemble goes to the Hub, and nothing else."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pneumonia_hf.errors import HubError, ModelError
from pneumonia_hf.evaluation.report import FIGURE_FILES
from pneumonia_hf.evaluation.scores import hash_files
from pneumonia_hf.files import read_json
from pneumonia_hf.hub import Pushed, check_repo_id, find_weights, push_files
from pneumonia_hf.inference.onnx_export import export_onnx
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models import model_card
from pneumonia_hf.models.model_folder import (
    CARD_FILE,
    ENSEMBLE_FILE,
    MODEL_FILES,
    REPORTS_FILE,
    RUN_FILE,
    check_model_folder,
)
from pneumonia_hf.publish.endpoint import ENDPOINT_NEEDS
from pneumonia_hf.publish.wheel import WHEEL_NAME, add_wheel

RUNNER = "handler.py"
START = "from pneumonia_hf.publish.endpoint import EndpointHandler  # noqa: E402, F401\n"
ENSEMBLE_FILES = (ENSEMBLE_FILE, "seeds.json", "seeds.md")
OWN_FILES = {*MODEL_FILES, *ENSEMBLE_FILES, RUNNER, "requirements.txt"}
# report.md, report.html and the predictions name the files of patients; examples are X-rays.
REPORT_FIGURES = [name for name in FIGURE_FILES if not name.startswith("examples.")]
# Whether the preprocessing is inside. No weights of 8 bits, which change too many decisions.
ONNX_FILES = {"model.onnx": False, "model_with_preprocessing.onnx": True}
# Tokens of the Hub, and absolute paths, which are no parts of an address or a fraction.
PRIVATE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|(?:(?<![\w./)])|(?<=file://))/(?:[\w.@-]+/)+[\w.@-]+|\b[A-Z]:\\+[\w.-]+\\+[\w.-]+"
)


def push_model(
    folder: str | Path,
    repo_id: str,
    private: bool = True,
    tag: str | None = None,
    report: str | Path | None = None,
    onnx: bool = False,
) -> Pushed:
    """Push a saved model, or an ensemble with its members, to the Hub in one commit.

    Args:
        folder: of the model or ensemble.
        repo_id: `owner/name`; it is created if it does not exist, `private` or public.
        tag: a name for the revision.
        report: folder of a report on this model, whose numbers and figures are pushed too. A
            single model's card gets its metrics, also in `folder`.
        onnx: push ONNX files of a single model too.

    Raises:
        UserError: not a saved model, a report of another one, an invalid card, a local path or
            token in a file, no permission, no network.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    files = collect_files(folder, repo_id, Path(report) if report else None)
    check_privacy(files)
    files |= export_files(folder) if onnx else {}
    message = "Add the model, its card and how it was made"
    return push_files(repo_id, files, message, is_ours, private, tag)


def push_and_tell(folder: Path, repo_id: str, *options: Any) -> None:
    """Push as `push_model` does, and print what is on the Hub then."""
    pushed = push_model(folder, repo_id, *options)
    what = "Pushed to" if pushed.is_new else "Nothing has changed since"
    print(f"{what} {pushed.url} ({'private' if pushed.is_private else 'public'}).")


def collect_files(folder: Path, repo_id: str, report: Path | None) -> dict[str, Path | bytes]:
    """Return what is pushed of a model folder, by its path in the repository."""
    members = list_members(folder)
    parts = [f"{one}/" for one in members] or [""]
    for part in parts:
        check_model_folder(folder / part)
    found = _collect_report(report, [folder / part for part in parts]) if report else {}
    if report and not members:
        model_card.add_report(folder, json.loads(found["report/report.json"]))
    names = [part + name for part in parts for name in MODEL_FILES if name != CARD_FILE]
    names += ENSEMBLE_FILES if members else []
    files = found | {name: folder / name for name in names if (folder / name).exists()}
    for part in parts:
        if name := next((one for one in files if one == part + REPORTS_FILE), None):
            reports = map(model_card.shown_of_report, read_json(folder / name, otherwise=[]))
            files[name] = json.dumps(list(reports), indent=1).encode()  # older ones hold more
    make = model_card.make_ensemble_card
    card = str(make(folder, members)) if members else (folder / CARD_FILE).read_text("utf-8")
    files[CARD_FILE] = card.replace(model_card.PLACEHOLDER, repo_id).encode()
    return files | add_wheel(RUNNER, START, ENDPOINT_NEEDS)


def list_members(folder: Path) -> list[str]:
    """Return the folders of the members of an ensemble, within its own; none of a single model."""
    members = read_json(folder / ENSEMBLE_FILE, otherwise={}).get("members", [])
    for member in members:
        if not (isinstance(member, str) and re.fullmatch(r"[\w-][\w.-]*", member)):
            raise ModelError(f"{ENSEMBLE_FILE} names {member!r}, which is no folder in {folder}.")
    return members


def _collect_report(report: Path, models: list[Path]) -> dict[str, Path | bytes]:
    """Return the numbers and figures of a report on the models, without names of files."""
    numbers = read_json(report / "report.json", otherwise={})
    weights = "+".join(digest for one in models for digest in hash_files(find_weights(one)))
    if numbers.get("weights_sha256") != weights:
        raise ModelError(f"{report} is no report on this model's weights; check --report.")
    content = json.dumps(model_card.shown_of_report(numbers), indent=1).encode()
    figures = {f"report/{name}": report / name for name in REPORT_FIGURES}
    return {"report/report.json": content} | {
        name: path for name, path in figures.items() if path.exists()
    }


def check_privacy(files: dict[str, Path | bytes]) -> None:
    """Raise a HubError if a text among the files holds a token or the path of a user."""
    for name, content in files.items():
        if Path(name).suffix in (".json", ".md", ".svg", ".txt"):
            text = content.decode() if isinstance(content, bytes) else content.read_text("utf-8")
            if match := PRIVATE.search(text):
                is_token = match.group().startswith("hf_")
                what = "a token of the Hub" if is_token else f"the local path {match.group()}"
                raise HubError(f"{name} holds {what}, which must not be pushed; remove it first.")


def export_files(folder: Path) -> dict[str, bytes]:
    """Return ONNX files of a single model, in the layout of transformers.js."""
    predictor = Predictor.from_pretrained(folder, device="cpu")
    with tempfile.TemporaryDirectory() as temporary:
        return {
            f"onnx/{name}": export_onnx(
                predictor, Path(temporary) / name, with_preprocessing=whole
            ).read_bytes()
            for name, whole in ONNX_FILES.items()
        }


def is_ours(name: str, there: Collection[str]) -> bool:
    """Return whether a file in a repository is of an earlier push, and not a user's own."""
    folder, _, file = name.rpartition("/")
    if folder in ("report", "onnx"):
        return file in {"report.json", *FIGURE_FILES, *ONNX_FILES}
    if not folder:
        return file in OWN_FILES or bool(WHEEL_NAME.fullmatch(file))
    return file in MODEL_FILES and f"{folder}/{RUN_FILE}" in there
