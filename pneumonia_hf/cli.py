"""What every script shares: recipe and flags read into dataclasses, errors as one sentence."""

from __future__ import annotations

import errno
import logging
import os
import sys
from argparse import Action, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import fields as field_list
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from pneumonia_hf.errors import Stopped, UserError

EXIT_FAULT = 2
# What gloo and NCCL say in the processes that are left.
PEER_IS_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL communicator was aborted",
)
# Names of flags and recipe keys in earlier versions, which are still read.
OLD_NAMES = {"stages": "phases", "trainable_stages": "trainable_layer_groups"}
EXIT_STOPPED = 143  # 128 + SIGTERM, as the shell has it


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit with its status.

    What a user can mend is printed as one sentence, with exit status 2; only faults of ours
    show a traceback.
    """
    # Its report of a head that is new would read like a fault; build_model checks the weights.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("httpx", "httpx2", "httpcore", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        status = main() or 0
    except KeyboardInterrupt:
        print("\nStopped by you; what was finished before is kept.", file=sys.stderr)
        status = 130
    except Stopped as stop:
        print(f"\n{stop}", file=sys.stderr)
        status = EXIT_STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing is left to say
        status = 0
    except Exception as error:
        sentence = format_error(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        status = EXIT_FAULT
    raise SystemExit(status)


def format_error(error: BaseException) -> str | None:
    """Return the sentence for an error that a user can mend, or None for a fault of ours."""
    if isinstance(error, UserError):
        return str(error)
    if is_disk_full(error):
        return "The disk is full; free some space and start again: what was finished is kept."
    if type(error).__name__ == "OutOfMemoryError":
        return "The accelerator's memory is too small; halve --per_device_train_batch_size."
    if is_worker_dead(error):
        return (
            "A process that reads the data was killed, maybe for want of memory; lower "
            "--dataloader_num_workers, and go on with --resume from the last checkpoint."
        )
    if isinstance(error, RuntimeError) and any(word in str(error) for word in PEER_IS_GONE):
        return (
            "Another process of this run has ended; see what it said, and start all of them "
            "again with --resume: the last checkpoint is kept."
        )
    if isinstance(error, PermissionError) and error.filename:
        return f"No permission to use {error.filename}; choose another folder."
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.EIO):
        return f"{error.filename} cannot be used: {error.strerror}."
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
        return f"{error.filename} is a file where a folder is needed; choose another name."
    return None


def is_worker_dead(error: BaseException) -> bool:
    """Return whether an error comes from the sudden end of a process that reads the data."""
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return True
    if not isinstance(error, ConnectionError | EOFError):
        return False
    # It died while a batch was handed over: the error is that of the pipe.
    frames = walk_tb(error.__traceback__)
    return any(Path(one.f_code.co_filename).parent.name == "multiprocessing" for one, _ in frames)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, however the libraries wrap it, comes from a full disk."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(chain)
        # safetensors and torch raise errors of their own, with the cause in the text.
        if "No space left on device" in text or "os error 28" in text:
            return True
        if "PytorchStreamWriter failed" in text or "unexpected pos" in text:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


class _Parser(ArgumentParser):
    """A parser whose complaints are one sentence, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}; --help lists the flags.")


def make_parser(description: str) -> ArgumentParser:
    """Return a parser for a script's few flags; `description` is the script's docstring."""
    return _Parser(
        description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )


def parse_recipe(
    dataclasses: Sequence[type],
    arguments: Sequence[str] | None = None,
    others: Sequence[type] = (),
) -> tuple:
    """Return one object a dataclass, from `--config RECIPE.yaml` and flags; flags win.

    Args:
        dataclasses: the kinds of object, whose field names are the keys and flags.
        arguments: the command line; left out, that of the process.
        others: kinds whose keys a recipe may hold too, though nothing here reads them.

    Raises:
        UserError: no such recipe, an unknown key or flag, a value of the wrong type, a required
            one left out.
    """
    from transformers import HfArgumentParser
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of each of the many small weight files; ours and downloads' stay

    class Parser(_Parser, HfArgumentParser):
        pass

    parser = Parser(dataclasses, allow_abbrev=False)
    parser.add_argument("--config", help="Recipe: a YAML file of the flags below.")
    known = {name for action in parser._actions for name in action.option_strings}
    arguments = [_rename_flag(one) for one in (sys.argv[1:] if arguments is None else arguments)]
    for flag in arguments:
        name = flag.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise UserError(f"Unknown flag {name}{_similar(name, known)}.")
    recipe = _config_flag(arguments)
    if recipe is not None:
        keys = _read_recipe(recipe)
        kinds = (*dataclasses, *others)
        fields = {field.name for kind in kinds for field in field_list(kind) if field.init}
        for key in keys:
            if key not in fields:
                raise UserError(f"{recipe} has an unknown key {key!r}{_similar(key, fields)}.")
        for action in parser._actions:
            if action.dest in keys:
                action.required = False
                # Text goes through the flag's own type, as if it had been typed.
                action.default = _as_typed(parser, action, keys[action.dest], recipe)
    try:
        *parsed, _ = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:  # transformers' own checks of its arguments
        raise UserError(" ".join(str(error).split())) from error
    return tuple(parsed)


def check_choices(config: Any) -> None:
    """Raise a UserError where a field of a dataclass typed `Literal[...]` has another value."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name, None)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise UserError(
                f"Unknown {name} {value!r}; choose from {', '.join(map(str, get_args(hint)))}."
            )


def _config_flag(arguments: Sequence[str]) -> Path | None:
    """Return the recipe, the last one if it is given twice, as for any flag."""
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    return finder.parse_known_args(arguments)[0].config


def _read_recipe(path: Path) -> dict:
    import yaml

    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"The recipe {path} does not exist; check --config.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The recipe {path} is not a YAML file that can be read: {reason}.") from (
            error
        )
    if not isinstance(keys, dict):
        raise UserError(f"The recipe {path} must hold lines of `key: value`.")
    return {OLD_NAMES.get(str(key), str(key)): value for key, value in keys.items()}


def _rename_flag(text: str) -> str:
    flag, equals, value = text.partition("=")
    return f"--{OLD_NAMES[flag[2:]]}{equals}{value}" if flag[2:] in OLD_NAMES else text


def _as_typed(parser: ArgumentParser, action: Action, value: Any, recipe: Path) -> Any:
    if isinstance(value, list) and action.nargs == "+":
        return [_as_typed(parser, action, one, recipe) for one in value]
    if value is None and action.default is None:
        return None
    try:
        if value is None or isinstance(value, list | dict):
            raise ValueError
        return parser._get_value(action, str(value))
    except Exception as error:
        raise UserError(f"{recipe} has {action.dest}: {value}, which is no valid value.") from error


def _similar(name: str, known: set[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; --help lists all"


def check_inputs(models: Sequence[str | Path] = (), data_folders: Sequence[str] = ()) -> None:
    """Raise a UserError if a model or data folder does not exist, before torch is imported.

    A model that may be a Hub id is left to `fetch_folder`.
    """
    from pneumonia_hf.files import expand
    from pneumonia_hf.hub import HUB_ID

    for model in map(str, models):
        if not HUB_ID.match(model.partition("@")[0]) and not expand(model).exists():
            raise UserError(f"The model folder {model} does not exist; check --model.")
    for folder in data_folders:
        if not expand(folder).exists():
            raise UserError(f"The data folder {folder} does not exist; check --data_dir.")
