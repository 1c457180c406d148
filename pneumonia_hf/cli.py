"""What all scripts share: recipe and flags -> dataclasses; errors as one sentence."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from argparse import ArgumentError, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from pneumonia_hf.compat.argparse import list_flags
from pneumonia_hf.compat.torch import find_cause
from pneumonia_hf.errors import DataError, ModelError, SettingError, Stopped, UserError
from pneumonia_hf.memory import keep_freed_memory

EXIT_FAULT = 2
EXIT_STOPPED = 143  # 128 + SIGTERM, as in a shell
# Flags and recipe keys of earlier versions, which are still read.
OLD_NAMES = {"stages": "phases", "trainable_stages": "trainable_layer_groups"}


def flag(default: Any, help_text: str, **more: Any) -> Any:
    """Return a field of a settings dataclass; `more` is for `ArgumentParser.add_argument`."""
    return field(default=default, metadata={"help": help_text, **more})


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit with its status.

    An error that a user can correct is printed as one sentence, with exit status 2; only bugs
    show a traceback.
    """
    keep_freed_memory()
    # Its warning about a new head would read like an error; build_model checks the weights.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("httpx", "httpx2", "httpcore", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        status = main() or 0
    except KeyboardInterrupt:
        print("\nInterrupted; completed work is kept.", file=sys.stderr)
        status = 130
    except Stopped as stop:
        print(f"\n{stop}", file=sys.stderr)
        status = EXIT_STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads our output any more
        status = 0
    except Exception as error:
        sentence = format_error(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        status = EXIT_FAULT
    raise SystemExit(status)


def format_error(error: BaseException) -> str | None:
    """Return one sentence for an error that a user can correct, or None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if cause := find_cause(error):
        return cause
    if isinstance(error, ImportError) and not str(error.name).startswith("pneumonia_hf"):
        reason = str(error).splitlines()[0].rstrip(".")
        return (
            f"A package is missing ({reason}); training, evaluation, search, audit and export "
            f"need: pip install -e '.[train]'."
        )
    if isinstance(error, PermissionError) and error.filename:
        return f"No permission to use {error.filename}; choose another folder."
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.EIO):
        return f"{error.filename} cannot be used: {error.strerror}."
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
        return f"{error.filename} is a file where a folder is needed; choose another name."
    return None


class _Parser(ArgumentParser):
    """A parser that reports an error as a SettingError."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{message[:1].upper()}{message[1:]}; --help lists the flags.")


def make_parser(description: str) -> ArgumentParser:
    """Return a parser for the flags of a script; `description` is the script's docstring."""
    return _Parser(
        description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )


def parse_recipe(
    kinds: Sequence[type],
    arguments: Sequence[str] | None = None,
    others: Sequence[type] = (),
    description: str | None = None,
) -> tuple:
    """Return one object for each dataclass, from `--config RECIPE.yaml` and flags; flags win.

    Args:
        kinds: dataclasses, whose field names are the recipe keys and flags.
        arguments: the command line; by default that of the process.
        others: dataclasses whose keys a recipe may hold too, but which are not read here.
        description: for --help.

    Raises:
        SettingError: no such recipe, an unknown key or flag, a required flag left out; a value of
            the wrong type or out of its range.
    """
    from transformers import HfArgumentParser
    from transformers.utils.logging import disable_progress_bar

    class Parser(_Parser, HfArgumentParser):
        pass

    disable_progress_bar()  # one for each small weight file; ours and those of downloads stay
    arguments = _rename_flags(arguments)
    own = {one.name: one for kind in kinds for one in fields(kind) if one.init}
    parser = Parser(kinds, description=description, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", help="Recipe: a YAML file of the flags below.")
    known = {text for one in list_flags(parser) for text in one.option_strings}
    for flag in arguments:
        name = flag.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise SettingError(f"Unknown flag {name}{similar(name, known)}.")
    recipe = _config_flag(arguments)
    keys = read_yaml(recipe, "recipe", "--config") if recipe else {}
    all_keys = own.keys() | {one.name for kind in others for one in fields(kind) if one.init}
    for key in keys:
        if key not in all_keys:
            raise SettingError(f"{recipe} has an unknown key {key!r}{similar(key, all_keys)}.")
    first = []  # the recipe as flags, before those of the command line: the last one wins
    for key, value in keys.items():
        if key in own and not (value is None and own[key].default is None):
            flags = _to_flags(own[key], value)
            if not (flags and _accepts(parser, flags)):
                raise SettingError(f"{recipe} has {key}: {value}, which is not a valid value.")
            first += flags
    try:
        *parsed, _, rest = parser.parse_args_into_dataclasses(
            [*first, *arguments], return_remaining_strings=True, look_for_args_file=False
        )
    except ArgumentError as error:
        parser.error(str(error))
    except ValueError as error:  # transformers' own checks of its arguments
        raise SettingError(" ".join(str(error).split())) from error
    if rest:
        parser.error(f"{rest[0]!r} belongs to no flag")
    return tuple(parsed)


def check_choices(config: Any) -> None:
    """Raise a SettingError where a field of a dataclass typed `Literal[...]` has another value."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name, None)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise SettingError(
                f"Unknown {name} {value!r}; choose from {', '.join(map(str, get_args(hint)))}."
            )


def _to_flags(one: Field, value: Any) -> list[str]:
    """Return a line of a recipe as on the command line; nothing if the field cannot have it."""
    if isinstance(value, list) and "list" in str(one.type).lower():
        return [f"--{one.name}", *map(str, value)]
    if value is None or isinstance(value, list):
        return []
    return [f"--{one.name}={json.dumps(value) if isinstance(value, dict) else value}"]


def _accepts(parser: ArgumentParser, flags: list[str]) -> bool:
    """Return whether a flag takes its value."""
    try:
        parser.parse_known_args(flags)
    except ArgumentError as error:
        return error.argument_name is None
    except SettingError:
        pass  # what is required may be on the command line
    return True


def _config_flag(arguments: Sequence[str]) -> Path | None:
    """Return the recipe; the last one if there are two, as for any flag."""
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    return finder.parse_known_args(arguments)[0].config


def read_yaml(path: Path, what: str, flag: str) -> dict[str, Any]:
    """Return the lines of a YAML file, with the present names of old keys.

    `what` the file is and the `flag` that names it are for the messages.

    Raises:
        SettingError: no such file, or not such a one.
    """
    import yaml

    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingError(f"The {what} {path} does not exist; check {flag}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        fault = f"The {what} {path} is not a YAML file that can be read: {reason}."
        raise SettingError(fault) from error
    if not isinstance(keys, dict):
        raise SettingError(f"The {what} {path} must hold lines of `key: value`.")
    return {OLD_NAMES.get(str(key), str(key)): value for key, value in keys.items()}


def _rename_flags(arguments: Sequence[str] | None) -> list[str]:
    """Return the command line with the present names of flags."""
    renamed = []
    for text in sys.argv[1:] if arguments is None else arguments:
        flag, equals, value = text.partition("=")
        new = OLD_NAMES.get(flag[2:]) if flag.startswith("--") else None
        renamed.append(f"--{new}{equals}{value}" if new else text)
    return renamed


def similar(name: str, known: set[str]) -> str:
    """Return the end of a sentence on an unknown name: the one that was meant, or where all are."""
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else "; --help lists all"


def add_positive_label(parser: ArgumentParser) -> None:
    """Add the flag for models whose class of images with pneumonia has another name."""
    parser.add_argument(
        "--positive_label",
        nargs="+",
        default=["PNEUMONIA"],
        metavar="CLASS",
        help="Name of the model's class of images with pneumonia (default: PNEUMONIA); of an "
        "ensemble one for all, or one for each.",
    )


def check_inputs(
    models: Sequence[str | Path] = (), data_folders: Sequence[str] = (), flag: str | None = None
) -> None:
    """Raise an error if a model or data folder does not exist, before torch is imported.

    A model that may be a Hub id is left to `fetch_folder`. `flag` is for the message; by default
    --model or --data_dir.
    """
    from pneumonia_hf.files import expand
    from pneumonia_hf.hub import HUB_ID, to_hub_id

    for model in map(str, models):
        repo_id = to_hub_id(model, flag or "--model").partition("@")[0]
        if not HUB_ID.match(repo_id) and not expand(model).exists():
            raise ModelError(f"The model folder {model} does not exist; check {flag or '--model'}.")
    for folder in data_folders:
        if not expand(folder).exists():
            raise DataError(
                f"The data folder {folder} does not exist; check {flag or '--data_dir'}."
            )
