"""The command `pneumonia-hf`: one file a subcommand, each with a `main` that reads the flags."""

from __future__ import annotations

import sys
from importlib import import_module

# Name of the subcommand and of its module -> what it does.
COMMANDS = {
    "train": "fine-tune a model on folders of X-rays",
    "evaluate": "evaluate a model on labelled X-rays and write a report",
    "predict": "score X-rays into a CSV table",
    "audit": "audit a data set before training on it",
    "preview": "draw X-rays as a recipe's augmentation changes them",
    "search": "search for the hyper-parameters of a recipe",
    "leave_one_site_out": "train on all sources but one and score that one, for each in turn",
    "recalibrate": "recalibrate a saved model on its own validation images",
    "quantize": "let a saved model score with 8-bit integers",
    "export": "export a saved model as one ONNX file",
    "compare": "put reports of several models side by side",
    "push": "push a saved model or ensemble to the Hugging Face Hub",
    "space": "make a Space on the Hub that serves a model",
    "check": "check that a running Space answers as its model does",
}


def main() -> int | None:
    """Run the subcommand that the command line names.

    Raises:
        UserError: it names none, or an unknown one.
    """
    from pneumonia_hf import __version__
    from pneumonia_hf.cli import similar
    from pneumonia_hf.errors import UserError

    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: pneumonia-hf COMMAND ...; pneumonia-hf COMMAND --help lists its flags\n")
        for command, text in COMMANDS.items():
            print(f"  {command:<20}{text}")
        return 0
    if name == "--version":
        print(__version__)
        return 0
    name = name.replace("-", "_")
    if name not in COMMANDS:
        raise UserError(f"Unknown command {sys.argv[1]}{similar(name, set(COMMANDS))}.")
    sys.argv = [f"pneumonia-hf {name}", *sys.argv[2:]]
    return import_module(f"pneumonia_hf.commands.{name}").main()


def run() -> None:
    """Run `main` as the console entry point."""
    from pneumonia_hf.cli import run_script

    run_script(main)
