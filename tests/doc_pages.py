"""The pages of the documentation, and the commands on them."""

import re
import shlex

from helpers import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "benchmarks" / "README.md",
        ROOT / "train_scripts" / "accelerate" / "README.md",
    ]
}
FOLDERS = "train_scripts|eval_reports|pneumonia_hf|tests|benchmarks|docs"
SCRIPTS = sorted(path.name for path in (ROOT / "train_scripts").glob("[a-z]*.py"))


def list_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def list_commands(text: str) -> list[list[str]]:
    """Return the words of each command in the bash blocks of a page."""
    commands = []
    for block in list_blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            # `bash -c '...'` holds a command in one word.
            words = [part for word in words for part in (word.split() if " -" in word else [word])]
            if words:
                commands.append(words)
    return commands


def find_script(words: list[str]) -> int | None:
    """Return the place of the script of ours that a command runs."""
    found = [
        n for n, word in enumerate(words) if re.fullmatch(rf"(?:{FOLDERS})/\w+\.(py|sh)", word)
    ]
    return found[0] if found else None


ALL_COMMANDS = [(page, words) for page, text in PAGES.items() for words in list_commands(text)]
SCRIPT_COMMANDS = [
    (page, words)
    for page, words in ALL_COMMANDS
    if find_script(words) is not None and not words[find_script(words)].startswith("docs/")
]
