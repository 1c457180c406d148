"""make_space: a Space of this app that serves one revision of a model of the Hub."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version

from pneumonia_hf.hub import Pushed, check_repo_id, find_model, push_files, set_variables
from pneumonia_hf.publish.wheel import WHEEL_NAME, add_wheel

RUNNER = "app.py"
START = """\
from pneumonia_hf.cli import run_script  # noqa: E402
from pneumonia_hf.demo.serve import main  # noqa: E402

if __name__ == "__main__":
    run_script(main)
"""
README = """\

# Pneumonia in chest X-rays

**Research software, not a medical device.** Nobody may be diagnosed, or sent home, because of it.
Do not upload images of patients without the right to do so.

It serves the model [{model}](https://huggingface.co/{model}) at the revision `{revision}`, by the
variables `MODEL_ID` and `MODEL_REVISION` of this Space. Written by pneumonia-hf {version}.
"""


def make_space(
    repo_id: str,
    model: str,
    private: bool = True,
    hardware: str = "cpu-basic",
    positive_label: str | None = None,
) -> tuple[Pushed, bool]:
    """Create or update a Space that serves a model; change only what is different.

    Args:
        repo_id: of the Space, `owner/name`.
        model: Hub id with an optional `@revision`; the Space keeps its commit.
        private: of a new Space.
        hardware: the hint for those who duplicate the Space; it rents nothing.
        positive_label: the model's class of images with pneumonia; None leaves the Space's
            variable as it is, without which that is PNEUMONIA.

    Returns:
        What is on the Hub, and whether the model is private: then the Space needs a token.

    Raises:
        UserError: no such model, no permission, no network.
    """
    check_repo_id(repo_id)
    found = find_model(model)
    files = add_wheel(RUNNER, START)
    files["README.md"] = make_readme(found.id, found.sha, found.card_data, hardware).encode()
    message = f"Serve {found.id} at {found.sha[:12]}"
    pushed = push_files(repo_id, files, message, is_ours, private, kind="space")
    variables = {"MODEL_ID": found.id, "MODEL_REVISION": found.sha}
    if positive_label:
        variables["POSITIVE_LABEL"] = positive_label
    set_variables(repo_id, variables)
    return pushed, bool(found.private)


def make_readme(model: str, revision: str, card: dict | None, hardware: str) -> str:
    """Return the README.md of a Space, whose front matter configures it."""
    import yaml

    from pneumonia_hf import __version__

    front = {
        "title": "Pneumonia in chest X-rays",
        "emoji": "🫁",
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": "3.11",
        "app_file": RUNNER,
        "suggested_hardware": hardware,
        "models": [model],
        "license": "apache-2.0",  # of the app
        "short_description": "Finds pneumonia in chest X-rays, for research",
    }
    if datasets := (card or {}).get("datasets"):
        front["datasets"] = datasets
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    text = f"---\n{text}---\n"
    return text + README.format(model=model, revision=revision, version=__version__)


def is_ours(name: str, there: Collection[str]) -> bool:
    """Return whether a file in a Space is of an earlier call; its name alone says so."""
    return bool(WHEEL_NAME.fullmatch(name))
